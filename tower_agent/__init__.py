"""The member's end of Tower: joins once, dials out, and serves the member's apiserver through the tunnel.

How the parts talk:

    cli, settings   the command line and its environment; no decisions
    app             builds everything and hands each part what it needs; check: only looks whether
                    the member is ready
    causes          puts what stands in the way of a connection into one sentence
    enrol           whether to join, how often to try, and what is kept when
    attempt         one try: from a join string to credentials, over a network we do not trust
    exchange        its HTTPS requests, direct or through a proxy
    renewal         keeps the certificate good, also after a long time off
    credentials     where those are kept: a directory, or a Secret of the member
    proxies         which HTTP proxy leads to the server, by HTTPS_PROXY and NO_PROXY
    link            keeps a tunnel to the server open, by the schedule of reconnect; kept: the
                    session of the one that was lost
    dialer          makes one: TCP (shared.outbound), TLS, upgrade (WebSocket)
    dispatch        what a stream of the tunnel is opened to: the sealed face, or
    raw             an address of the agent's own list
    reporter        tells the server how the member is; health: tells the kubelet how we are,
                    and Prometheus the numbers of metrics

What faces the member's apiserver (preflight, sealed face, reports) is in `shared.member`.
Imports point down only. The server's package is a stranger: what both need is in `shared` or `certs`.
"""
