"""The PKI of Tower: who somebody is, how they prove it, and what that is worth.

The parts, from the bottom up:

    names       cluster and zone names, roles and their URIs, what a user certificate says
    keys        P-256 keys, the pin of a public key, private files
    contexts    every ssl.SSLContext of the program, built from bytes in memory; who the peer is
    chains      PEM, "our CA signed this", "this is valid now"
    signatures  a signed statement that carries its signer's certificate (JWS with x5c)
    profiles    which extensions our certificates have
    authority   the CA: makes itself once, issues agent, server and user certificates
    assertion   how a joined agent proves itself when the outer TLS ends at a stranger
    tokens      join tokens and the join string
    nonces      what makes a join request young, without memory
    joining     how a join secret is proven without being sent, and answered
    renewing    how an agent gets a new certificate for its key

A certificate has exactly one role, in a URI SAN. TLS says only "our CA signed this";
each verifier then demands the role that it is there for (`names.role_of`), so that a
certificate for one purpose opens no other door. README.md in this folder says who
trusts whom, and what each stolen thing is worth to a thief.

Nothing here reads a clock: `now` is an argument, always a datetime with a time zone.
Nothing here knows Tower's other packages. What is refused is a ValueError whose text says
what to do next; files that cannot be read or written are an OSError. The classes of our own:

    ValueError
    ├── names.RoleError               the certificate is genuine and not for this purpose
    └── signatures.BadStatement       a signed message fails a check; `reason` names it
        ├── BadAssertion              … in the upgrade of a tunnel
        └── BadProof                  … while joining
"""
