"""The asyncio shell of the tunnel: transports on one side, `shared.mux` on the other.

    connection  one WebSocket connection that carries a session
    local       a tunnel within this process, without a connection
    messages    WebSocket frames of messages, read and written without copies
    owner       a tunnel as others see it; what a connection tells whoever uses its session
    drain       the friendly end of tunnels: GOAWAY, time, RESET
    sockets     what we ask of the socket below
    alarms      one timer for all connections of an event loop
    progress    whether what a connection writes still leaves
    relay       a local TCP connection ↔ a stream
    tls         TLS inside a stream: the sealed face's end, the control stream
    tasks       who owns background tasks
    tuning      uvloop and malloc, before a program's first byte

Transports call protocols, protocols feed the core, the core calls handlers, handlers
write to transports: all in one call chain, without a task or a queue between.
"""
