"""Sockets, TLS, proxies and deadlines: what binds a session to the network."""
