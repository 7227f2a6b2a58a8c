#!/usr/bin/env bash
# Linux: a look into a UNIX stream socket brings descriptors of sends that it does not reach.
#
# One would guess: recvmsg with MSG_PEEK returns what the same call without it would return, so that a
# look at one byte that was sent without descriptors comes without descriptors.
# What happens: it comes with the descriptors of the next send in the queue that has any, however far
# behind the bytes looked at that is. Without MSG_PEEK, the same bytes come without, and the
# descriptors with the first byte of theirs. A program that has to know the byte to which descriptors
# belong (a proxy, a server that reads ahead) cannot find it by looking.
#
# Takes nothing but Python and the running kernel, whose version it prints.
set -euo pipefail

uname -sr
python3 - <<'END'
import array, os, socket

a, b = socket.socketpair()
a.sendall(b"1111")
a.sendall(b"2222")
a.sendmsg([b"3333"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])


def receive(count, flags=0):
    data, control, _, _ = b.recvmsg(count, socket.CMSG_SPACE(4), flags)
    fds = [fd for _, _, raw in control for fd in array.array("i", raw)]
    for fd in fds:
        os.close(fd)
    print(f"{'look at' if flags else 'receive'} {count}: {data.decode()}, {len(fds)} descriptor(s)")
    return data, len(fds)


assert receive(1, socket.MSG_PEEK) == (b"1", 1)
assert receive(1) == (b"1", 0)
assert receive(7) == (b"1112222", 0)
assert receive(4) == (b"3333", 1)
END
echo "as described"
