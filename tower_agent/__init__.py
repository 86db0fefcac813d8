"""The member's end of Tower: joins once, dials out, and serves the member's apiserver through the tunnel.

How the parts talk:

    cli, settings   the command line and its environment; no decisions
    app             builds everything and hands each part what it needs; check: the preflight alone
    preflight       asks the member's apiserver whether the agent may do its work
    causes          puts what stands in the way of a connection into one sentence
    enrol           whether to join, how often to try, and what is kept when
    attempt         one try: from a join string to credentials, over a network we do not trust
    exchange        its HTTPS requests, direct or through a proxy
    credentials     where those are kept: a directory, or a Secret of the member
    proxies         which HTTP proxy leads to the server, by HTTPS_PROXY and NO_PROXY
    member          what enrol's neighbours need of the member's apiserver: one JSON request,
                    which member_client makes over the pool
    link            keeps a tunnel to the server open, by the schedule of reconnect; kept: the
                    session of the one that was lost
    dialer          makes one: outbound (TCP, through a proxy or not), TLS, upgrade (WebSocket)
    dispatch        what a stream of the tunnel is opened to:
    sealed          TLS that ends here, then requests to the apiserver under the caller's name
    raw             an address of the agent's own list
    reporter        tells the server how the member is; health: tells the kubelet how we are,
                    and Prometheus the numbers of metrics

Imports point down only. The server's package is a stranger: what both need is in `shared` or `certs`.
"""
