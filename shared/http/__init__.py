"""The request path: from a caller's plaintext connection to a member's apiserver.

    status       Kubernetes `Status` bodies; `Refusal`, a request that we answer ourselves
    heads        request and response heads: grammar and framing fields           (pure)
    framing      where a body ends: counted, chunked, endless                     (pure)
    paths        the cluster's prefix                                             (pure)
    identity     Caller, Policy, and the rules who a request runs as              (pure)
    translation  all of the above: the client's head → the apiserver's head       (pure)
    deadlines    a deadline that moves often and seldom strikes
    kubeconfig   what a kubeconfig says about one cluster
    apiserver    where the apiserver is, and our credential to it
    tls_transport  TLS over a transport, with small buffers
    route        the way there: TCP or a proxy, and TLS
    upstream     the warm pool of connections to it
    asserted     a caller for whom another end of ours vouches, request by request     (pure)
    exchange     one request and its answer
    relay        one client connection: request after request, upgrades, limits
    reviews      may this caller impersonate that user?
    client       a small JSON client over the same pool, for our own questions
    service      what all connections share; makes the relays

It knows byte streams, not tunnels and not TLS: whoever has a plaintext stream and a
caller can use it. In the agent, for a stream opened to `sealed`:

    apiserver = in_cluster(monotonic=loop.time)         # or from_kubeconfig(path, ...)
    pool = UpstreamPool(apiserver, loop=loop)
    service = RequestService(pool=pool, policy=Policy(users=..., groups=...), loop=loop)
    ...
    end = TlsEnd(                                       # shared.tunnel.tls
        tls_context,
        server_side=True,
        on_handshake=service.accept(identify),          # identify(ssl_object) -> Caller
        call_later=loop.call_later,
    )
    end.start(stream)                                   # and `end` is the stream's handler

and for callers whom a server of ours has authenticated, and names with each request:

    handler = service.serve_asserted(stream, cluster, refusal)

At the end: `service.end_all(...)`, then `await pool.close()`.
"""
