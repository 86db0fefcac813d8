"""The host's end of Tower: takes the agents' calls and gives each member a name and a kubeconfig.

How the parts talk, from the outside in:

    cli, settings    the command line `tower-server` and its environment; no decisions
    admin_cli        the command line `tower`, with access_cli (kubeconfigs and credentials), direct_cli
                     (clusters with a direct connection), admin_console (what they share), tables (text for
                     people), private_output (files for one pair of eyes)
                     and admin_client, which speaks to the admin socket
    app              builds everything and hands each part what it needs
    front_door       one port; by the first bytes a connection goes to a member's agent (sealed),
                     or to our own_https: tunnels to the listener, paths of clusters to the gateway,
                     the rest to endpoints;
                     client_hello reads those bytes, half_open counts strangers (both pure);
                     turns lets the newest shake hands first, a few at a time
    listener         takes tunnels, and has the registry know which sessions are alive; admission:
                     how many handshakes at a time; parking: sessions that wait for their agent
    gateway          the clusters' APIs through our own HTTPS, for callers whom we authenticate
    control          what an agent reports inside a tunnel; entry: raw TCP ports, for tests
    state            the CA, the server's identity and its store, from a directory or from the host cluster;
                     state_directory: one server at a time; host_state: the same in Secrets;
                     identity: the server's own key and certificate
    direct           members that the server reaches by itself, by a kubeconfig; direct_cluster: one of
                     them, served in this process as an agent would; reachability: without flapping;
                     serving: the certificate for its name
    endpoints        /join/ca, /join/nonce, /join, /healthz as routes, and nothing else
    renewal          new certificates for agents that have joined; answers: what both sign
    join, throttle   the steps of a join (proof, rules, certificate, signed answer); guesses are slow
    admin            the admin API: tokens, clusters, kubeconfigs, status; admin_socket: who may open it;
                     admin_orders reads what is asked, admin_documents says what is answered, admin_access
                     hands out access, admin_direct takes kubeconfigs
    metrics, top     numbers for Prometheus, and for people who watch (`tower top`)
    controllers      make the host's Cluster objects true, where the state is kept in the host cluster
    stores           what outlives the process: tokens and clusters, behind a few domain verbs
    kube             the host's apiserver, for a server whose state lies there: the one home of its client
    membership       the pure rules that a join must pass (token and member UID)
    tokens           the pure rules of one join token
    skew             which agents have another version than the server
    issuer           a cluster's access for an identity: key, certificate, kubeconfig
    kubeconfig,      pure: what we print for people to use, and (publication) for Argo CD, Flux and their
    publication,     like; token_form and access_form pick how a token or an access is handed out
    manifest

Imports point down only. The agent's package is a stranger: what both need is in `shared` or `certs`.
"""
