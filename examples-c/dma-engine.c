/*
 * dma-engine: a device that copies, fills and sums up the guest's memory.
 *
 * Shows what a device with DMA is made of: a PCI Express function with power
 * management, function level reset and MSI-X; a memory BAR of registers; a BAR
 * of memory that the client maps in part; access to the guest's memory, mapped
 * or by messages; completion interrupts; reset and quiesce; live migration. This
 * file sets the device up and runs it. dma-engine.h is what its driver has to know;
 * the BARs are in dma-engine-registers.c, the DMA in dma-engine-work.c, and
 * dma-engine-migration.c is where to begin with migration, and dma-engine-upgrade.c
 * has what it takes to replace the process under its client.
 *
 * The rule that shapes the program: a register write only notes what to do. DMA
 * is done from the main loop, once the write has been answered, a chunk at a
 * time. Clients may well be unable to serve DMA messages while they wait for the
 * answer to a register access (QEMU is), and none should have to wait long.
 *
 *     dma-engine [--async-quiesce] [--hand-over=SOCKET] [--verbose] [--once] [--socket-path=]PATH,
 *                or --fd=FD
 *     dma-engine [--async-quiesce] --take-over=SOCKET [--verbose] [--once]
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE /* memfd_create */
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
#include <unistd.h>

#include <vfio-user/libvfio-user-ext.h>

#include "dma-engine-device.h"

/*
 * Interrupts.
 */

static bool
msix_enabled(const struct engine *engine)
{
    const vfu_pci_config_space_t *config = vfu_pci_get_config_space(engine->ctx);
    struct msixcap cap;

    memcpy(&cap, config->raw + engine->msix_cap, sizeof(cap));
    return cap.mxc.mxe;
}

static bool
trigger(struct engine *engine, uint32_t vector)
{
    if (vfu_irq_trigger(engine->ctx, vector) < 0) {
        /* ENOENT: the client does not listen to this vector. */
        vfu_log(engine->ctx, LOG_DEBUG, "interrupt %u not delivered: %m", vector);
        return false;
    }
    return true;
}

/*
 * Brings INTx in step with the device; example gpio-idio-16 explains it. While the
 * device is stopped the line is down; if it was up, it rises again when it runs.
 */
void
update_intx(struct engine *engine)
{
    vfu_pci_config_space_t *config = vfu_pci_get_config_space(engine->ctx);
    bool pending = (engine->state.irq_status & engine->state.irq_enable) != 0;

    config->hdr.sts.is = pending;
    bool level = pending && !config->hdr.cmd.id && !engine->intx_masked && !msix_enabled(engine)
                 && !is_stopped(engine);
    if (level && !engine->intx_level) {
        level = trigger(engine, 0);
    }
    engine->intx_level = level;
}

void
raise_irq(struct engine *engine, uint32_t bits, uint32_t vector)
{
    engine->state.irq_status |= bits;
    /* A message-signalled interrupt is an event, where INTx is a level. */
    if ((bits & engine->state.irq_enable) != 0 && msix_enabled(engine)) {
        trigger(engine, vector);
    }
    update_intx(engine);
}

static void
on_intx_mask(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    struct engine *engine = vfu_get_private(ctx);

    (void)start;
    (void)count;
    engine->intx_masked = mask;
    if (!mask) {
        engine->intx_level = false;
        update_intx(engine);
    }
}

void
fail(struct engine *engine, enum dma_engine_status error, uint32_t vector)
{
    engine->state.error = error;
    raise_irq(engine, DMA_ENGINE_IRQ_ERROR, vector);
}

/*
 * Reset and quiesce.
 */

void
clear_memory(struct engine *engine)
{
    /* Gives the pages back; those who have mapped them see zeros, too. */
    if (madvise(engine->memory, DMA_ENGINE_BAR2_SIZE, MADV_REMOVE) < 0) {
        memset(engine->memory, 0, DMA_ENGINE_BAR2_SIZE);
    }
}

/*
 * The device as after power-on: registers, memory and configuration space. The
 * library forgets only what is its own.
 */
static void
power_on(struct engine *engine)
{
    memset(&engine->state, 0, sizeof(engine->state));
    clear_memory(engine);
    memcpy(vfu_pci_get_config_space(engine->ctx), engine->power_on_config, CONFIG_SPACE_SIZE);
    engine->intx_level = false;
}

/* The client reset the device, the guest did by Device Control, or the client has left. */
static int
on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct engine *engine = vfu_get_private(ctx);

    vfu_log(ctx, LOG_DEBUG, "reset, type %d", type);
    power_on(engine);
    reset_migration(engine, type);
    if (type == VFU_RESET_LOST_CONN) {
        engine->intx_masked = false;
    }
    return 0;
}

/*
 * The library is about to change something under the device: a mapping goes, or
 * a reset comes. A device that has nothing in flight agrees at once. The others
 * say EBUSY, go on, and call vfu_device_quiesced when they have come to a stop.
 */
static int
on_quiesce(vfu_ctx_t *ctx)
{
    struct engine *engine = vfu_get_private(ctx);

    if (!engine->async_quiesce && !is_busy(engine)) {
        return 0;
    }
    engine->quiesce_pending = true;
    errno = EBUSY;
    return -1;
}

/* Called between two chunks, which is where this device stands still. */
static void
finish_quiesce(struct engine *engine)
{
    if (!engine->quiesce_pending) {
        return;
    }
    engine->quiesce_pending = false;
    /* What the library waited for is done in here; then the device runs again. */
    if (vfu_device_quiesced(engine->ctx, 0) < 0) {
        vfu_log(engine->ctx, LOG_ERR, "vfu_device_quiesced: %m");
    }
}

/* The guest's memory comes and goes. This device looks up each address anew. */
static void
on_dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_DEBUG, "guest memory at %p, %#zx bytes, %s", info->iova.iov_base,
            info->iova.iov_len, info->vaddr != NULL ? "mapped" : "not mapped");
}

/* The library calls this to have the mappings given back; vfu_sgl_get insists on it. */
static void
on_dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_DEBUG, "guest memory at %p goes", info->iova.iov_base);
}

/*
 * Setting up.
 */

static void
add_capabilities(struct engine *engine)
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
        .mxc.ts = DMA_ENGINE_NR_VECTORS - 1, /* counted from 0 */
        .mtab = { .tbir = 0, .to = DMA_ENGINE_MSIX_TABLE >> 3 },
        .mpba = { .pbir = 0, .pbao = DMA_ENGINE_MSIX_PBA >> 3 },
    };
    ssize_t msix_cap;

    /* Position 0: the library finds room. It keeps a copy. */
    if (vfu_pci_add_capability(engine->ctx, 0, 0, &pm) < 0
        || vfu_pci_add_capability(engine->ctx, 0, 0, &px) < 0
        || (msix_cap = vfu_pci_add_capability(engine->ctx, 0, 0, &msix)) < 0) {
        err(EXIT_FAILURE, "vfu_pci_add_capability");
    }
    engine->msix_cap = msix_cap;
}

static void
set_up_regions(struct engine *engine, bool is_taken)
{
    /* The parts that the client may map, as offsets in the region. */
    struct iovec mappable = {
        .iov_base = (void *)DMA_ENGINE_MEMORY_START,
        .iov_len = DMA_ENGINE_BAR2_SIZE - DMA_ENGINE_MEMORY_START,
    };

    if (vfu_setup_region(engine->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, DMA_ENGINE_BAR0_SIZE,
                         bar0_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1,
                         0) < 0) {
        err(EXIT_FAILURE, "vfu_setup_region: BAR 0");
    }

    engine->memory_fd = is_taken ? get_old_memory(engine) : memfd_create("dma-engine", MFD_CLOEXEC);
    if (engine->memory_fd < 0 || ftruncate(engine->memory_fd, DMA_ENGINE_BAR2_SIZE) < 0) {
        err(EXIT_FAILURE, "memfd_create");
    }
    engine->memory = mmap(NULL, DMA_ENGINE_BAR2_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                          engine->memory_fd, 0);
    if (engine->memory == MAP_FAILED) {
        err(EXIT_FAILURE, "mmap");
    }
    /* The descriptor stays the device's, and open as long as the context lives. */
    if (vfu_setup_region(engine->ctx, VFU_PCI_DEV_BAR2_REGION_IDX, DMA_ENGINE_BAR2_SIZE,
                         bar2_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, &mappable, 1,
                         engine->memory_fd, 0) < 0) {
        err(EXIT_FAILURE, "vfu_setup_region: BAR 2");
    }
}

static void
set_up_callbacks(struct engine *engine)
{
    if (vfu_setup_device_nr_irqs(engine->ctx, VFU_DEV_INTX_IRQ, 1) < 0
        || vfu_setup_device_nr_irqs(engine->ctx, VFU_DEV_MSIX_IRQ, DMA_ENGINE_NR_VECTORS) < 0
        || vfu_setup_irq_state_callback(engine->ctx, VFU_DEV_INTX_IRQ, on_intx_mask) < 0) {
        err(EXIT_FAILURE, "interrupts");
    }
    if (vfu_setup_device_dma(engine->ctx, LIBVFIO_USER_MAX_DMA_REGIONS, on_dma_register,
                             on_dma_unregister) < 0) {
        err(EXIT_FAILURE, "vfu_setup_device_dma");
    }
    if (vfu_setup_device_reset_cb(engine->ctx, on_reset) < 0) {
        err(EXIT_FAILURE, "vfu_setup_device_reset_cb");
    }
    vfu_setup_device_quiesce_cb(engine->ctx, on_quiesce);
    set_up_migration(engine);
}

static void
describe_device(struct engine *engine, bool is_taken)
{
    if (vfu_pci_init(engine->ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        err(EXIT_FAILURE, "vfu_pci_init");
    }
    vfu_pci_set_id(engine->ctx, DMA_ENGINE_VENDOR_ID, DMA_ENGINE_DEVICE_ID, 0, 0);
    vfu_pci_set_class(engine->ctx, DMA_ENGINE_BASE_CLASS, DMA_ENGINE_SUB_CLASS, 0);
    add_capabilities(engine);
    set_up_regions(engine, is_taken);
    set_up_callbacks(engine);
    if (vfu_realize_ctx(engine->ctx) < 0) {
        err(EXIT_FAILURE, "vfu_realize_ctx");
    }
    memcpy(engine->power_on_config, vfu_pci_get_config_space(engine->ctx), CONFIG_SPACE_SIZE);
}

/*
 * The main loop.
 */

/* Handles what made the context's descriptor readable. Returns false when a client has left. */
static bool
handle_client(struct engine *engine, bool *attached)
{
    if (!*attached) {
        if (vfu_attach_ctx(engine->ctx) == 0) {
            *attached = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            warn("vfu_attach_ctx");
        }
        return true;
    }

    if (vfu_run_ctx(engine->ctx) >= 0) {
        /* The guest may have changed INTx disable, or enabled MSI-X. */
        update_intx(engine);
        return true;
    }
    switch (errno) {
    case EBUSY: /* a quiesce is pending */
    case EINTR:
    case EAGAIN:
        return true;
    case ENOTCONN:
        *attached = false;
        return false;
    default:
        err(EXIT_FAILURE, "vfu_run_ctx");
    }
}

/* Serves one client after the other, until a signal comes, the device has gone to another
 * process or, with once, a client has left. */
static void
serve(struct engine *engine, int signal_fd, bool attached, bool once)
{
    for (;;) {
        struct pollfd fds[] = {
            { .fd = signal_fd, .events = POLLIN },
            { .fd = vfu_get_poll_fd(engine->ctx), .events = POLLIN },
            { .fd = vfux_get_hand_over_fd(engine->ctx), .events = POLLIN }, /* -1: nobody may take over */
        };

        /* With work at hand, look what the client wants but don't wait for it. */
        bool at_work = is_busy(engine) || engine->quiesce_pending;
        if (poll(fds, 3, at_work ? 0 : -1) < 0) {
            if (errno != EINTR) {
                err(EXIT_FAILURE, "poll");
            }
            continue;
        }
        if (fds[0].revents != 0 || (fds[2].revents != 0 && hand_over(engine))) {
            return;
        }
        if (fds[1].revents != 0 && !handle_client(engine, &attached) && once) {
            return;
        }
        work(engine);
        finish_quiesce(engine);
        if (engine->hand_over_pending && hand_over(engine)) {
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
    fprintf(stderr, "dma-engine[%d]: %s\n", level, message);
}

/* A context for a device that nobody has yet. */
static vfu_ctx_t *
create_context(struct engine *engine, const char *path, int fd)
{
    vfu_ctx_t *ctx = path != NULL
                         ? vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, engine,
                                          VFU_DEV_TYPE_PCI)
                         : vfux_create_ctx_over_fd(fd, LIBVFIO_USER_FLAG_ATTACH_NB, engine,
                                                   VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(EXIT_FAILURE, "cannot listen at %s", path != NULL ? path : "that descriptor");
    }
    return ctx;
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

static void
usage(FILE *out)
{
    fputs("Usage: dma-engine [OPTION]... [--socket-path=]PATH\n"
          "Serve a PCI device that copies and fills guest memory, at the UNIX socket PATH.\n"
          "\n"
          "      --socket-path=PATH  where to listen; must not exist\n"
          "      --fd=FD             in place of PATH: a socket that is open already, and\n"
          "                          listens (systemd: 3) or is connected to a client\n"
          "      --hand-over=SOCKET  let another process take over at SOCKET\n"
          "      --take-over=SOCKET  in place of PATH: take over there, with the client\n"
          "      --async-quiesce     never quiesce at once, even when idle\n"
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
        { "async-quiesce", no_argument, NULL, 'a' },
        { "hand-over", required_argument, NULL, 'H' },
        { "take-over", required_argument, NULL, 'T' },
        { "once", no_argument, NULL, 'o' },
        { "verbose", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    static struct engine engine;
    const char *path = NULL;
    const char *from = NULL;
    const char *to = NULL;
    int fd = -1;
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
        case 'a':
            engine.async_quiesce = true;
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
    /* One of the three. */
    if ((path != NULL) + (fd != -1) + (from != NULL) != 1 || (from != NULL && to != NULL)
        || optind != argc) {
        usage(stderr);
        return EXIT_FAILURE;
    }

    int signal_fd = open_signal_fd();

    engine.sgl = calloc(MAX_SGS, dma_sg_size());
    if (engine.sgl == NULL) {
        err(EXIT_FAILURE, "calloc");
    }
    engine.ctx = from != NULL ? ask_for_device(&engine, from) : create_context(&engine, path, fd);
    vfu_setup_log(engine.ctx, on_log, verbose ? LOG_DEBUG : LOG_ERR);

    describe_device(&engine, from != NULL);
    set_up_hand_over(&engine, to);
    serve(&engine, signal_fd, from != NULL && take_over(&engine), once);

    /* The context uses the memory, so it goes first. */
    vfu_destroy_ctx(engine.ctx);
    end_saving(engine.saving);
    end_loading(engine.loading);
    munmap(engine.memory, DMA_ENGINE_BAR2_SIZE);
    close(engine.memory_fd);
    close(signal_fd);
    free(engine.sgl);
    return EXIT_SUCCESS;
}
