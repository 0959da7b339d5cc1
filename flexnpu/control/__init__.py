"""Typed, versioned control messages of the daemon (`messages`), the paths of its sockets (`paths`), and the
client (`client`).
"""
