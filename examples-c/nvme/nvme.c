/*
 * nvme: a small NVM Express controller with one namespace, which is a file or
 * memory of its own. Linux drives it as it drives any NVMe disk.
 *
 * Shows a device whose queues lie in the guest's memory, and what it takes to be fast
 * there: commands are fetched in batches, data are copied straight between the
 * namespace and the guest's memory, one interrupt tells of a batch. Shows, too, a
 * doorbell page that the client maps and the device polls (--poll-doorbells), so
 * that a request needs no message at all; a device that keeps apart what its guest
 * may do wrong; and its live migration with another process over the same file.
 *
 * The guest is not to be trusted, and its memory changes under our hands: what is in
 * it is copied once, then checked, then used. Everything runs on one thread. A
 * register write only changes registers; queues are worked on by the main loop, when
 * the write has been answered. A command is executed from beginning to end in one
 * go, so between two calls of the library nothing is in flight: no pointer into the
 * guest's memory is kept, and the device is quiesced whenever it is asked.
 *
 *     nvme [--file=FILE] [--size=SIZE] [--readonly] [--poll-doorbells] [--uuid=UUID]
 *          [--hand-over=SOCKET] [--verbose] [--once] [--socket-path=]PATH, or --fd=FD
 *     nvme --take-over=SOCKET [--size=SIZE] [--uuid=UUID] [--verbose] [--once]
 *
 * This file sets the device up and has the main loop; the other parts have theirs,
 * and nvme.h has the specification's. controller.h says what they know of each other.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <syslog.h>
#include <unistd.h>

#include <vfio-user/libvfio-user-ext.h>

#include "controller.h"

/*
 * Setting up.
 */

static void
add_capabilities(struct controller *ctrl)
{
    struct pmcap pm = {
        .hdr.id = PCI_CAP_ID_PM,
        .pc.vs = 3, /* version 1.2 of the power management specification */
        .pmcs = { { .raw = PCI_PM_CTRL_NO_SOFT_RESET } }, /* from D3hot to D0 */
    };
    struct pxcap px = {
        .hdr.id = PCI_CAP_ID_EXP,
        .pxcaps = { .ver = 2, .dpt = PCI_EXP_TYPE_ENDPOINT },
        .pxdcap = { .rer = 1, .flrc = 1 }, /* role-based error reporting; FLR */
    };
    struct msixcap msix = {
        .hdr.id = PCI_CAP_ID_MSIX,
        .mxc.ts = NVME_NR_VECTORS - 1, /* counted from 0 */
        .mtab = { .tbir = NVME_MSIX_BAR, .to = 0 },
        .mpba = { .pbir = NVME_MSIX_BAR, .pbao = NVME_MSIX_PBA >> 3 },
    };

    if (vfu_pci_add_capability(ctrl->ctx, 0, 0, &pm) < 0
        || vfu_pci_add_capability(ctrl->ctx, 0, 0, &px) < 0
        || vfu_pci_add_capability(ctrl->ctx, 0, 0, &msix) < 0) {
        err(EXIT_FAILURE, "vfu_pci_add_capability");
    }
}

static void
set_up_regions(struct controller *ctrl, bool is_taken)
{
    struct iovec mappable = { .iov_base = (void *)NVME_DOORBELLS, .iov_len = PAGE };
    int bar_flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;

    if (is_taken) {
        take_doorbells(ctrl);
    } else {
        ctrl->bar0_fd = create_memory_file("nvme BAR 0", NVME_BAR0_SIZE);
        ctrl->doorbells = map_file(ctrl->bar0_fd, NVME_DOORBELLS, PAGE);
    }
    /* Only what has a descriptor can be mapped; without one, every doorbell is a message. */
    if (vfu_setup_region(ctrl->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, NVME_BAR0_SIZE, bar0_access,
                         bar_flags | VFU_REGION_FLAG_64_BITS,
                         ctrl->poll_doorbells ? &mappable : NULL, ctrl->poll_doorbells ? 1 : 0,
                         ctrl->poll_doorbells ? ctrl->bar0_fd : -1, 0) < 0
        || vfu_setup_region(ctrl->ctx, NVME_MSIX_BAR, NVME_MSIX_SIZE, msix_access, bar_flags, NULL,
                            0, -1, 0) < 0) {
        err(EXIT_FAILURE, "vfu_setup_region");
    }
}

static void
set_up_callbacks(struct controller *ctrl)
{
    static const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = on_transition,
        .read_data = on_read_data,
        .write_data = on_write_data,
    };

    /* No quiesce callback: see the top. */
    if (vfu_setup_device_nr_irqs(ctrl->ctx, VFU_DEV_MSIX_IRQ, NVME_NR_VECTORS) < 0
        || vfu_setup_device_dma(ctrl->ctx, LIBVFIO_USER_MAX_DMA_REGIONS, NULL,
                                on_dma_unregister) < 0
        || vfu_setup_device_reset_cb(ctrl->ctx, on_reset) < 0
        || vfu_setup_device_migration_callbacks(ctrl->ctx, &migration) < 0) {
        err(EXIT_FAILURE, "callbacks");
    }
    ctrl->migration = VFU_MIGR_STATE_RUNNING;
}

static void
describe_device(struct controller *ctrl, bool is_taken)
{
    if (vfu_pci_init(ctrl->ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        err(EXIT_FAILURE, "vfu_pci_init");
    }
    vfu_pci_set_id(ctrl->ctx, VENDOR_ID, DEVICE_ID, 0, 0);
    vfu_pci_set_class(ctrl->ctx, NVME_BASE_CLASS, NVME_SUB_CLASS, NVME_PROG_IF);
    add_capabilities(ctrl);
    set_up_regions(ctrl, is_taken);
    set_up_callbacks(ctrl);
    if (vfu_realize_ctx(ctrl->ctx) < 0) {
        err(EXIT_FAILURE, "vfu_realize_ctx");
    }
    memcpy(ctrl->power_on_config, vfu_pci_get_config_space(ctrl->ctx), CONFIG_SPACE_SIZE);

    ctrl->state.magic = NVME_STATE_MAGIC;
    ctrl->state.version = NVME_STATE_VERSION;
    ctrl->state.length = sizeof(ctrl->state);
    memcpy(ctrl->state.uuid, ctrl->ns.uuid, sizeof(ctrl->state.uuid));
    ctrl->state.nsze = ctrl->ns.nr_blocks;
    ctrl->state.nr_queues = NVME_NR_QUEUES;
    ctrl->state.nr_vectors = NVME_NR_VECTORS;
    power_on(ctrl);
}

/*
 * The main loop.
 */

/* Handles what made the context's descriptor readable. Returns false when a client has left. */
static bool
handle_client(struct controller *ctrl, bool *attached)
{
    if (!*attached) {
        if (vfu_attach_ctx(ctrl->ctx) == 0) {
            *attached = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            warn("vfu_attach_ctx");
        }
        return true;
    }
    if (vfu_run_ctx(ctrl->ctx) >= 0 || errno == EINTR || errno == EAGAIN) {
        return true;
    }
    if (errno != ENOTCONN) {
        err(EXIT_FAILURE, "vfu_run_ctx");
    }
    *attached = false;
    return false;
}

/* Serves one client after the other, until a signal comes, the device has gone to another
 * process or, with once, a client has left. */
static void
serve(struct controller *ctrl, int signal_fd, bool attached, bool once)
{
    for (;;) {
        struct pollfd fds[] = {
            { .fd = signal_fd, .events = POLLIN },
            { .fd = vfu_get_poll_fd(ctrl->ctx), .events = POLLIN },
            { .fd = vfux_get_hand_over_fd(ctrl->ctx), .events = POLLIN }, /* -1: nobody may take over */
        };

        /* With work at hand, or doorbells to poll, look what the client wants but don't wait for it. */
        if (poll(fds, 3, work(ctrl) ? 0 : -1) < 0) {
            if (errno != EINTR) {
                err(EXIT_FAILURE, "poll");
            }
            continue;
        }
        if (fds[0].revents != 0 || (fds[2].revents != 0 && hand_over(ctrl))) {
            return;
        }
        if (fds[1].revents != 0 && !handle_client(ctrl, &attached) && once) {
            return;
        }
    }
}

/* A descriptor that becomes readable when the program is to end. */
static int
open_signal_fd(void)
{
    sigset_t signals;
    int fd;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    fd = signalfd(-1, &signals, SFD_CLOEXEC);
    if (fd < 0) {
        err(EXIT_FAILURE, "signalfd");
    }
    return fd;
}

static void
on_log(vfu_ctx_t *ctx, int level, const char *message)
{
    (void)ctx;
    fprintf(stderr, "nvme[%d]: %s\n", level, message);
}

/* Bytes, or with a letter behind it KiB, MiB, GiB, TiB. Returns 0 for what makes no sense. */
static uint64_t
parse_size(const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long size = strtoull(text, &end, 0);
    const char *unit = *end != '\0' ? strchr(units, toupper((unsigned char)*end)) : NULL;
    unsigned shift = unit != NULL ? 10 * (unit - units + 1) : 0;

    if (!isdigit((unsigned char)*text) || errno != 0 || end[unit != NULL] != '\0'
        || size > (uint64_t)INT64_MAX >> shift) {
        return 0;
    }
    return size << shift;
}

/* The number of a descriptor, or -1. */
static int
parse_fd(const char *text)
{
    char *end;
    errno = 0;
    long fd = strtol(text, &end, 10);

    return isdigit((unsigned char)*text) && errno == 0 && *end == '\0' && fd <= INT_MAX ? fd : -1;
}

static bool
parse_uuid(const char *text, uint8_t uuid[16])
{
    int end = 0;

    for (int i = 0; i < 16; i++) {
        text += *text == '-';
        if (sscanf(text, "%2hhx%n", &uuid[i], &end) != 1 || end != 2) {
            return false;
        }
        text += end;
    }
    return *text == '\0';
}

/* A context for a disk that nobody has yet. */
static vfu_ctx_t *
create_context(struct controller *ctrl, const char *path, int fd)
{
    vfu_ctx_t *ctx = path != NULL
                         ? vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, ctrl,
                                          VFU_DEV_TYPE_PCI)
                         : vfux_create_ctx_over_fd(fd, LIBVFIO_USER_FLAG_ATTACH_NB, ctrl,
                                                   VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(EXIT_FAILURE, "cannot listen at %s", path != NULL ? path : "that descriptor");
    }
    return ctx;
}

static void
usage(FILE *out)
{
    fputs("Usage: nvme [OPTION]... [--socket-path=]PATH\n"
          "       nvme [OPTION]... --fd=FD\n"
          "       nvme [OPTION]... --take-over=SOCKET\n"
          "Serve an NVMe disk at the UNIX socket PATH.\n"
          "\n"
          "      --socket-path=PATH  where to listen; must not exist\n"
          "      --fd=FD             in place of PATH: a socket that is open already, and\n"
          "                          listens (systemd: 3) or is connected to a client\n"
          "      --file=FILE         what the disk holds; without it, memory\n"
          "      --size=SIZE         its size, with K, M, G or T; a FILE is made, or made\n"
          "                          longer, for it. Without it, that of FILE\n"
          "      --readonly          refuse to write\n"
          "      --poll-doorbells    let the client map the doorbells, and poll them\n"
          "      --uuid=UUID         of the namespace; else one is made from FILE's inode\n"
          "      --hand-over=SOCKET  let another process take over at SOCKET\n"
          "      --take-over=SOCKET  take over, with the disk and the client, and hand over\n"
          "                          there, too; --size and --uuid as they were given there\n"
          "      --once              leave when the first client has left\n"
          "  -v, --verbose           log what the library does\n"
          "  -h, --help              show this help\n", out);
}

int
main(int argc, char *argv[])
{
    static const struct option options[] = {
        { "socket-path", required_argument, NULL, 's' },
        { "fd", required_argument, NULL, 'd' },
        { "file", required_argument, NULL, 'f' },
        { "size", required_argument, NULL, 'z' },
        { "readonly", no_argument, NULL, 'r' },
        { "poll-doorbells", no_argument, NULL, 'p' },
        { "uuid", required_argument, NULL, 'u' },
        { "hand-over", required_argument, NULL, 'H' },
        { "take-over", required_argument, NULL, 'T' },
        { "once", no_argument, NULL, 'o' },
        { "verbose", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    static struct controller controller;
    struct controller *ctrl = &controller;
    const char *path = NULL;
    const char *file = NULL;
    const char *from = NULL;
    const char *to = NULL;
    uint64_t size = 0;
    int fd = -1;
    bool has_uuid = false;
    bool once = false;
    bool verbose = false;
    int option;

    while ((option = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
        switch (option) {
        case 's':
            path = optarg;
            break;
        case 'd':
            fd = parse_fd(optarg);
            if (fd < 0) {
                errx(EXIT_FAILURE, "not a descriptor: %s", optarg);
            }
            break;
        case 'f':
            file = optarg;
            break;
        case 'z':
            size = parse_size(optarg);
            if (size == 0) {
                errx(EXIT_FAILURE, "not a size: %s", optarg);
            }
            break;
        case 'r':
            ctrl->ns.readonly = true;
            break;
        case 'p':
            ctrl->poll_doorbells = true;
            break;
        case 'u':
            has_uuid = true;
            if (!parse_uuid(optarg, ctrl->ns.uuid)) {
                errx(EXIT_FAILURE, "not a UUID: %s", optarg);
            }
            break;
        case 'H':
            to = optarg;
            break;
        case 'T':
            from = optarg;
            break;
        case 'o':
            once = true;
            break;
        case 'v':
            verbose = true;
            break;
        case 'h':
            usage(stdout);
            return EXIT_SUCCESS;
        default:
            usage(stderr);
            return EXIT_FAILURE;
        }
    }
    if (path == NULL && optind < argc) {
        path = argv[optind++];
    }
    bool is_complete = from != NULL ? path == NULL && fd == -1 && file == NULL && to == NULL
                                    : (path == NULL) == (fd != -1) && (file != NULL || size != 0);
    if (!is_complete || optind != argc) {
        usage(stderr);
        return EXIT_FAILURE;
    }

    int signal_fd = open_signal_fd();

    if (from != NULL) {
        ctrl->ctx = ask_for_device(ctrl, from);
        take_namespace(ctrl, size, has_uuid);
    } else {
        open_namespace(&ctrl->ns, file, size, has_uuid);
        ctrl->ctx = create_context(ctrl, path, fd);
    }
    vfu_setup_log(ctrl->ctx, on_log, verbose ? LOG_DEBUG : LOG_ERR);

    describe_device(ctrl, from != NULL);
    set_up_hand_over(ctrl, to);
    serve(ctrl, signal_fd, from != NULL && take_over(ctrl), once);

    /* The context uses the doorbells' file, so it goes first. */
    vfu_destroy_ctx(ctrl->ctx);
    munmap(ctrl->doorbells, PAGE);
    close(ctrl->bar0_fd);
    if (ctrl->ns.memory != NULL) {
        munmap(ctrl->ns.memory, ctrl->ns.nr_blocks << NVME_LBA_SHIFT);
    }
    close(ctrl->ns.fd);
    close(signal_fd);
    free_pieces(&ctrl->access);
    free_pieces(&ctrl->data);
    return EXIT_SUCCESS;
}
