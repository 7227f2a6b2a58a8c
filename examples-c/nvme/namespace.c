/*
 * nvme: the namespace, which is a file or memory.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE /* memfd_create, preadv2, fallocate */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "controller.h"

/* Memory in a file. Others get to see it, but it keeps its size: so it can be touched without fear. */
int
create_memory_file(const char *name, uint64_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, size) < 0
        || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        err(EXIT_FAILURE, "memfd_create");
    }
    return fd;
}

void *
map_file(int fd, uint64_t offset, uint64_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

    if (memory == MAP_FAILED) {
        err(EXIT_FAILURE, "mmap");
    }
    return memory;
}

/* What follows from a namespace's descriptor and size. */
void
know_namespace(struct namespace *ns, uint64_t size, bool has_uuid)
{
    struct stat st;

    ns->nr_blocks = size >> NVME_LBA_SHIFT;
    if (ns->nr_blocks == 0) {
        errx(EXIT_FAILURE, "a namespace without blocks");
    }
    if (!has_uuid) {
        if (fstat(ns->fd, &st) < 0) {
            err(EXIT_FAILURE, "fstat");
        }
        bool is_device = S_ISBLK(st.st_mode);

        make_uuid(is_device, is_device ? st.st_rdev : st.st_dev, is_device ? 0 : st.st_ino, ns->uuid);
    }
}

/* Opens the namespace; size 0: as large as the file. */
void
open_namespace(struct namespace *ns, const char *path, uint64_t size, bool has_uuid)
{
    if (path == NULL) {
        size &= ~(uint64_t)(PAGE - 1);
        ns->fd = create_memory_file("nvme namespace", size);
        ns->memory = map_file(ns->fd, 0, size);
        /* Where the kernel has huge pages for it, reading here and there is much faster. */
        madvise(ns->memory, size, MADV_HUGEPAGE);
    } else {
        int create = size != 0 && !ns->readonly ? O_CREAT : 0;

        ns->fd = open(path, (ns->readonly ? O_RDONLY : O_RDWR) | create | O_CLOEXEC, 0666);
        if (ns->fd < 0) {
            err(EXIT_FAILURE, "%s", path);
        }
        off_t present = lseek(ns->fd, 0, SEEK_END); /* of block devices, too */
        if (present < 0) {
            err(EXIT_FAILURE, "%s", path);
        }
        if (size == 0) {
            size = present;
        } else if (size > (uint64_t)present && (ns->readonly || ftruncate(ns->fd, size) < 0)) {
            err(EXIT_FAILURE, "%s is smaller than %llu bytes", path, (unsigned long long)size);
        }
    }
    know_namespace(ns, size, has_uuid);
}

/* Reads or writes the iovecs, which are used up on the way. */
static bool
access_file(struct namespace *ns, struct iovec *iov, size_t n, uint64_t offset, bool is_write,
            bool durable)
{
    while (n > 0) {
        int count = min(n, IOV_MAX);
        ssize_t done = is_write ? pwritev2(ns->fd, iov, count, offset, durable ? RWF_DSYNC : 0)
                                : preadv(ns->fd, iov, count, offset);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return false; /* 0: somebody has cut the file short */
        }
        offset += done;
        while (n > 0 && (size_t)done >= iov->iov_len) {
            done -= iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (char *)iov->iov_base + done;
            iov->iov_len -= done;
        }
    }
    return true;
}

/* Moves the data of the command in hand. */
enum nvme_status
access_namespace(struct controller *ctrl, uint64_t offset, bool is_write, bool durable)
{
    struct namespace *ns = &ctrl->ns;

    if (ns->memory != NULL) {
        if (is_write) {
            copy_from_data(ctrl, ns->memory + offset);
        } else {
            copy_to_data(ctrl, ns->memory + offset);
        }
        return NVME_SUCCESS;
    }
    /* unmap_data needs the others. */
    memcpy(ctrl->data.spare, ctrl->data.iov, ctrl->data.nr * sizeof(*ctrl->data.iov));
    if (access_file(ns, ctrl->data.spare, ctrl->data.nr, offset, is_write, durable)) {
        return NVME_SUCCESS;
    }
    ctrl->state.counters.media_errors++;
    return is_write ? NVME_WRITE_FAULT : NVME_UNRECOVERED_READ_ERROR;
}

/* Makes blocks zeroes: by a hole where the file system can, else by writing them. */
enum nvme_status
zero_blocks(struct controller *ctrl, uint64_t slba, uint64_t nlb)
{
    static const uint8_t zeroes[64 * 1024];
    struct namespace *ns = &ctrl->ns;
    uint64_t offset = slba << NVME_LBA_SHIFT;
    uint64_t len = nlb << NVME_LBA_SHIFT;

    if (fallocate(ns->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len) == 0) {
        return NVME_SUCCESS;
    }
    while (len > 0) {
        struct iovec iov = { .iov_base = (void *)zeroes, .iov_len = min(len, sizeof(zeroes)) };
        size_t part = iov.iov_len;

        if (!access_file(ns, &iov, 1, offset, true, false)) {
            ctrl->state.counters.media_errors++;
            return NVME_WRITE_FAULT;
        }
        offset += part;
        len -= part;
    }
    return NVME_SUCCESS;
}

enum nvme_status
flush(struct controller *ctrl)
{
    if (ctrl->ns.memory == NULL && !ctrl->ns.readonly && fdatasync(ctrl->ns.fd) < 0) {
        ctrl->state.counters.media_errors++;
        return NVME_WRITE_FAULT;
    }
    return NVME_SUCCESS;
}
