"""The host's apiserver: the only home of the `kubernetes` library.

    resources   names and paths of what we read and write there; objects are plain JSON. Pure
    errors      what can go wrong, as five kinds of KubeError
    rate        how many requests a second, as arithmetic. Pure
    access      where the apiserver is and how we authenticate: the pod's ServiceAccount or a kubeconfig
    client      one request: deadline, bounded retries, rate, error kinds; and one watch
    informer    list and watch: a copy of a kind of object that stays current, also over outages
    lease       which of several servers writes

We use the library's asynchronous half (`kubernetes.aio`) for access, TLS, credentials and their
renewal, and for its HTTP session. Its typed models, its Watch (which starts over in a tight loop
when a server closes at once) and its leader election (which starts tasks of its own and reads the
wall clock) are left aside.
"""
