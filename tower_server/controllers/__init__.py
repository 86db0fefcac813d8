"""What makes the host's Cluster objects true, where the state lies in Kubernetes.

Level-triggered: whatever happened, a cluster's name goes into the `queue`, and then everything about it is
looked at. Decisions are pure, acting is thin:

    objects      what is read from Cluster objects and Secrets, and the join Secret that is written
    plan         what has to be done about a cluster, from what is wanted and what is there
    conditions   what its status says, with thresholds against flapping
    actions      what the plan decided, done
    queue        whose turn it is: coalesces, spaces, backs off
    clusters     the controller: watches, asks plan and conditions, has it done

Of several servers the holder of a lease writes; the others watch all the same, so that their registries
know who has joined and who was removed. All status is written by server-side apply as one field manager,
so that who holds the lease owns exactly what it says and leaves to others what is theirs.
"""
