"""The gateway face: the members' APIs through the server's own HTTPS, for whom the server knows.

    face       connections of callers: TLS is done, requests come; a relay of shared.http for each
    requests   one request's head: who asks, for which cluster, and what the agent gets of it
    callers    who asks, from what a connection or a request proves
    token_file bearer tokens from a file
    routes     the paths that are ours, and which cluster they mean                  (pure)
    streams    warm streams to each member, inside mutual TLS with its agent

Cluster, caller and route are decided for each request anew: clients send what they have for
different clusters, and for the server itself, over one connection. The identity goes to the
member with the request, and the agent treats it as the sealed face treats a certificate's.
"""
