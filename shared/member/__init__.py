"""A member as its apiserver shows it, and its end of the faces: for the agent, and for whoever stands in for one.

    questions   one JSON request to the apiserver: what the others here take, instead of a pool
    client      ... made over the pool of `shared.http.upstream`
    preflight   who the member is, and whether we have the rights that we will need there
    report      how the member is, in a few fields; expiry: when our credential there ends
    sealed      the TLS end of the sealed face: a control plane's connection becomes requests
    gateway     the same for requests of callers whom the server has authenticated

The agent has all of it in the member. For a direct connection the server has it in its own
process, with a kubeconfig's credential. Neither knows here which of the two it is.
"""
