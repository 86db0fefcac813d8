"""`make bench`: what the tunnel costs, measured beside a direct connection and the prototype.

The parts, in the order in which a run uses them:

    cli           options, the run as a whole, the exit status
    workloads     what is measured: a table of workloads, links and metrics
    generator     the load generator: builds load/ (Go) or falls back to pyload/ (Python)
    site          what all columns share: temporary directory, certificates, upstream
    columns       the three ways from client to upstream: direct, prototype, tunnel
    credentials   those of a whole fleet, without its joins
    fleet         many simulated agents on one server: memory, idle CPU, their return
    objects       many Cluster objects on one server, beside a real control plane
    runner        interleaves the columns, round by round, and collects the samples
    figures       percentiles, medians, ratios: pure
    targets       what we want to reach, beside the figures
    report        the table and out/latest.json: pure apart from the writing
    disasters     readers that stall, a link that freezes or drops; known: bytes to tell by
    machine       on what it ran: out/machine.json
    processes     every process that a run starts, and its certain end

Client, upstream, server and agent are processes of their own; the harness only
starts them, reads /proc and does sums, so it is never what is being measured. All
of it stays on loopback and in one temporary directory, and ends with the run.
"""
