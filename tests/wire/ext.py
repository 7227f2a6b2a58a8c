"""The functions of libvfio-user-ext.h, which the C library does not have, as Python sees them."""
import ctypes as c

from libvfu import P, _declare


class credentials(c.Structure):
    _fields_ = [("pid", c.c_int), ("uid", c.c_uint), ("gid", c.c_uint)]


_declare("vfux_get_client_credentials", c.c_int, P, P)
