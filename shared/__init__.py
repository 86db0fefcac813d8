"""What server and agent share: the protocol, the tunnel that carries it, and the HTTP relay.

    errors    codes and exceptions that cross borders
    streams   the interface of one byte stream, seen from either side
    wire      frames and hello, normative text in wire/SPEC.md             (pure)
    mux       streams, windows, turns, the session                         (pure)
    tunnel    the asyncio shell: transports on one side, mux on the other; TLS inside a stream
    http      request heads, identity headers, Status errors; the relay to an apiserver
    member    a member's apiserver: preflight, reports, the TLS end of the sealed face
    metrics   numbers as Prometheus reads them, and those that both ends have; probe_port: where
              they and the answers to probes are served
    program   how our programs run and end: event loop, signals, exit status
    outbound  a TCP connection, straight or through an HTTP proxy
    settings  values of flags and environment variables; durations: `8h` and `3m12s`
    words     what others say, made fit for our sentences
    logs      log lines as text or JSON, without secrets
    version   the version of this build

Both ends run the same classes; the role is a parameter. Imports point down only:
`tunnel` → `mux` → `wire`; `http` knows streams, not tunnels; `member` uses them all.
"""
