"""Shared memory of one device: sealed arenas, their hand-over between processes, and leases on their slots.

In reading order:

    arena            one sealed shared memory, cut into slots
    lease            states, generations and pins of slots
    leased_arena     an arena together with its leases
    tensor_form      form and place of recovered experts in the slots
    description      what another process has to know of an arena
    broker           hands an arena's descriptor to other processes
    unix_socket      socket paths and stale socket files
    mapping          mappings aligned to huge pages
    huge_pages       requests huge pages, measures their share
    memory_pages     mmap, madvise and mlock through ctypes
    headroom         free memory of machine and control groups

The expert store and the decoder own arenas (`zipmoe/process/boot.py`). The decoder and the router map them.
"""
