"""The ground floor: SMTP and LMTP without I/O.  Bytes in, replies out; no loop, socket, TLS or clock."""
