/*
 * gpio-idio-16: the ACCES PCI-IDIO-16, a card of 16 digital outputs and 16
 * digital inputs, as Linux's driver gpio-pci-idio-16 knows it.
 *
 * Shows an I/O BAR with registers that do things when they are touched, and an
 * INTx interrupt done right: it has a level, it has a bit in the PCI status
 * register, and the guest can mask it. The context is non-blocking, so that the
 * program waits in a call of its own (ppoll) and could wait for other things.
 *
 *     gpio-idio-16 [--loopback | --count] [--verbose] [--once] [--socket-path=]PATH
 *
 * In a Linux guest, with --loopback:
 *
 *     gpiomon gpiochip0 16 &    # lines 16 to 31 are the inputs
 *     gpioset gpiochip0 0=1     # lines 0 to 15 the outputs
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE /* ppoll */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <vfio-user/libvfio-user.h>

enum {
    ACCES_VENDOR_ID = 0x494f,
    PCI_IDIO_16_DEVICE_ID = 0x0dc8,
    /* PCI class 11.80: signal processing, of the other kinds. */
    IDIO_16_BASE_CLASS = 0x11,
    IDIO_16_SUB_CLASS = 0x80,
    IDIO_16_SIZE = 256,
};

/* Registers of one byte each. Reading and writing often mean different things. */
enum {
    IDIO_16_OUT_0_7 = 0,       /* read, write: outputs 0 to 7 */
    IDIO_16_IN_0_7 = 1,        /* read: inputs 0 to 7; write: clear the interrupt */
    IDIO_16_IRQ_CONTROL = 2,   /* read: enable interrupts; write: disable them */
    IDIO_16_FILTERS = 3,       /* read: switch input filters on; write: off */
    IDIO_16_OUT_8_15 = 4,      /* read, write: outputs 8 to 15 */
    IDIO_16_IN_8_15 = 5,       /* read: inputs 8 to 15 */
    IDIO_16_IRQ_STATUS = 6,    /* read: see below */
};

/* Bits of IDIO_16_IRQ_STATUS. */
enum {
    IDIO_16_CHANGED_0_7 = 1 << 0,
    IDIO_16_CHANGED_8_15 = 1 << 1,
    IDIO_16_IRQ_PENDING = 1 << 2,
};

struct idio_16 {
    vfu_ctx_t *ctx;

    /* How the inputs are wired up. */
    bool loopback; /* each input to the output of its number */
    bool count;    /* to a counter, which each read of inputs 0 to 7 advances */

    uint16_t outputs;
    uint16_t inputs;
    bool irq_enabled;
    uint8_t irq_status;

    /* The line to the interrupt controller. */
    bool intx_level;  /* what was last said to the client */
    bool intx_masked; /* by the client */
};

static volatile sig_atomic_t stop;

static void
on_signal(int signal)
{
    (void)signal;
    stop = 1;
}

static void
on_log(vfu_ctx_t *ctx, int level, const char *message)
{
    (void)ctx;
    fprintf(stderr, "gpio-idio-16[%d]: %s\n", level, message);
}

/*
 * Brings the interrupt line in step with the device.
 *
 * INTx is a level: it stays up until the driver has cleared its cause. The
 * eventfd behind vfu_irq_trigger can only say that it went up. The client takes
 * the line down by itself at the driver's next access to the device, and then
 * unmasks it (on_intx_mask), to be told again if it is still up.
 */
static void
update_intx(struct idio_16 *card)
{
    vfu_pci_config_space_t *config = vfu_pci_get_config_space(card->ctx);
    bool pending = (card->irq_status & IDIO_16_IRQ_PENDING) != 0;

    /* A guest driver that shares the line (vfio-pci does) asks here whose interrupt it was. */
    config->hdr.sts.is = pending;

    bool level = pending && !config->hdr.cmd.id && !card->intx_masked;
    if (level && !card->intx_level && vfu_irq_trigger(card->ctx, 0) < 0) {
        /* ENOENT: the client does not listen yet. The next update tries again. */
        vfu_log(card->ctx, LOG_DEBUG, "interrupt not delivered: %m");
        level = false;
    }
    card->intx_level = level;
}

/* The client masks INTx when it has taken an interrupt, and unmasks it for the next. */
static void
on_intx_mask(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    struct idio_16 *card = vfu_get_private(ctx);

    /* There is only vector 0, so start and count say nothing new. */
    (void)start;
    (void)count;
    card->intx_masked = mask;
    if (!mask) {
        card->intx_level = false;
        update_intx(card);
    }
}

static void
set_inputs(struct idio_16 *card, uint16_t inputs)
{
    uint16_t changed = card->inputs ^ inputs;

    card->inputs = inputs;
    if (changed == 0 || !card->irq_enabled) {
        return;
    }
    if (changed & 0x00ff) {
        card->irq_status |= IDIO_16_CHANGED_0_7;
    }
    if (changed & 0xff00) {
        card->irq_status |= IDIO_16_CHANGED_8_15;
    }
    card->irq_status |= IDIO_16_IRQ_PENDING;
    update_intx(card);
}

static void
set_outputs(struct idio_16 *card, uint16_t outputs)
{
    card->outputs = outputs;
    vfu_log(card->ctx, LOG_DEBUG, "outputs %04x", outputs);
    if (card->loopback) {
        set_inputs(card, outputs);
    }
}

static void
clear_interrupt(struct idio_16 *card)
{
    card->irq_status = 0;
    update_intx(card);
}

static uint8_t
read_register(struct idio_16 *card, loff_t offset)
{
    switch (offset) {
    case IDIO_16_OUT_0_7:
        return card->outputs & 0xff;
    case IDIO_16_IN_0_7:
        if (card->count) {
            set_inputs(card, card->inputs + 1);
        }
        return card->inputs & 0xff;
    case IDIO_16_IRQ_CONTROL:
        card->irq_enabled = true;
        return 0;
    case IDIO_16_OUT_8_15:
        return card->outputs >> 8;
    case IDIO_16_IN_8_15:
        return card->inputs >> 8;
    case IDIO_16_IRQ_STATUS:
        return card->irq_status;
    default:
        /* Nothing there, or the filters, which these inputs don't need. */
        return 0;
    }
}

static void
write_register(struct idio_16 *card, loff_t offset, uint8_t value)
{
    switch (offset) {
    case IDIO_16_OUT_0_7:
        set_outputs(card, (card->outputs & 0xff00) | value);
        break;
    case IDIO_16_IN_0_7:
        clear_interrupt(card);
        break;
    case IDIO_16_IRQ_CONTROL:
        card->irq_enabled = false;
        break;
    case IDIO_16_OUT_8_15:
        set_outputs(card, (card->outputs & 0x00ff) | value << 8);
        break;
    default:
        break;
    }
}

/* A wide access is one to each byte, as on the card's 8-bit bus. */
static ssize_t
bar2_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct idio_16 *card = vfu_get_private(ctx);

    for (size_t i = 0; i < count; i++) {
        if (is_write) {
            write_register(card, offset + i, (uint8_t)buf[i]);
        } else {
            buf[i] = (char)read_register(card, offset + i);
        }
    }
    return count;
}

/*
 * A reset, or the client has left: back to the state after power-on. The library
 * leaves the device's registers alone, those in the configuration space included.
 */
static int
on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct idio_16 *card = vfu_get_private(ctx);
    vfu_pci_config_space_t *config = vfu_pci_get_config_space(ctx);

    card->irq_enabled = false;
    card->inputs = 0;
    set_outputs(card, 0);
    config->hdr.cmd.raw = 0;
    clear_interrupt(card);
    if (type == VFU_RESET_LOST_CONN) {
        card->intx_masked = false;
    }
    return 0;
}

static void
describe_device(vfu_ctx_t *ctx)
{
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        err(EXIT_FAILURE, "vfu_pci_init");
    }
    vfu_pci_set_id(ctx, ACCES_VENDOR_ID, PCI_IDIO_16_DEVICE_ID, 0, 0);
    vfu_pci_set_class(ctx, IDIO_16_BASE_CLASS, IDIO_16_SUB_CLASS, 0);

    /* Without VFU_REGION_FLAG_MEM the BAR is one of I/O ports. */
    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, IDIO_16_SIZE, bar2_access,
                         VFU_REGION_FLAG_RW, NULL, 0, -1, 0) < 0) {
        err(EXIT_FAILURE, "vfu_setup_region");
    }

    /* One INTx vector; the library sets the interrupt pin register for it. */
    if (vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) < 0) {
        err(EXIT_FAILURE, "vfu_setup_device_nr_irqs");
    }
    if (vfu_setup_irq_state_callback(ctx, VFU_DEV_INTX_IRQ, on_intx_mask) < 0) {
        err(EXIT_FAILURE, "vfu_setup_irq_state_callback");
    }
    if (vfu_setup_device_reset_cb(ctx, on_reset) < 0) {
        err(EXIT_FAILURE, "vfu_setup_device_reset_cb");
    }

    if (vfu_realize_ctx(ctx) < 0) {
        err(EXIT_FAILURE, "vfu_realize_ctx");
    }
}

/*
 * Handles what made the context's descriptor readable. Neither call waits: the
 * context is non-blocking. Returns false when a client has left.
 */
static bool
handle_client(struct idio_16 *card, bool *attached)
{
    if (!*attached) {
        if (vfu_attach_ctx(card->ctx) == 0) {
            *attached = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            warn("vfu_attach_ctx");
        }
        return true;
    }

    if (vfu_run_ctx(card->ctx) >= 0) {
        /* The guest may have changed the command register's INTx disable bit. */
        update_intx(card);
        return true;
    }
    switch (errno) {
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

/*
 * Blocks the signals that end the program, and says with which mask to wait for
 * them. They are let in only while ppoll waits, so none can slip in between the
 * look at `stop` and the wait.
 */
static void
catch_signals(sigset_t *wait_mask)
{
    struct sigaction action = { .sa_handler = on_signal };
    sigset_t blocked;

    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, wait_mask);
    sigdelset(wait_mask, SIGINT);
    sigdelset(wait_mask, SIGTERM);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Serves one client after the other, until a signal comes or, with once, one has left. */
static void
serve(struct idio_16 *card, const sigset_t *wait_mask, bool once)
{
    bool attached = false;

    while (!stop) {
        /* Ask each time: the descriptor may change when a client comes or goes. */
        struct pollfd fd = { .fd = vfu_get_poll_fd(card->ctx), .events = POLLIN };

        if (ppoll(&fd, 1, NULL, wait_mask) < 0) {
            if (errno != EINTR) {
                err(EXIT_FAILURE, "ppoll");
            }
            continue;
        }
        if (!handle_client(card, &attached) && once) {
            return;
        }
    }
}

static void
usage(FILE *out)
{
    fputs("Usage: gpio-idio-16 [OPTION]... [--socket-path=]PATH\n"
          "Serve an ACCES PCI-IDIO-16 (16 digital outputs, 16 inputs) at the UNIX socket PATH.\n"
          "\n"
          "      --socket-path=PATH  where to listen; must not exist\n"
          "      --loopback          wire each input to the output of its number\n"
          "      --count             wire the inputs to a counter that each read of\n"
          "                          inputs 0 to 7 advances\n"
          "      --once              leave when the first client has left\n"
          "  -v, --verbose           log what the library does\n"
          "  -h, --help              show this help\n"
          "\n"
          "Without --loopback and --count all inputs stay 0.\n", out);
}

int
main(int argc, char *argv[])
{
    static const struct option options[] = {
        { "socket-path", required_argument, NULL, 's' },
        { "loopback", no_argument, NULL, 'l' },
        { "count", no_argument, NULL, 'c' },
        { "once", no_argument, NULL, 'o' },
        { "verbose", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    struct idio_16 card = { 0 };
    const char *path = NULL;
    bool once = false;
    bool verbose = false;
    sigset_t wait_mask;
    int option;

    while ((option = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
        switch (option) {
        case 's':
            path = optarg;
            break;
        case 'l':
            card.loopback = true;
            break;
        case 'c':
            card.count = true;
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
    if (path == NULL || optind != argc || (card.loopback && card.count)) {
        usage(stderr);
        return EXIT_FAILURE;
    }

    catch_signals(&wait_mask);

    card.ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, &card,
                              VFU_DEV_TYPE_PCI);
    if (card.ctx == NULL) {
        err(EXIT_FAILURE, "vfu_create_ctx: %s", path);
    }
    vfu_setup_log(card.ctx, on_log, verbose ? LOG_DEBUG : LOG_ERR);

    describe_device(card.ctx);
    serve(&card, &wait_mask, once);

    vfu_destroy_ctx(card.ctx);
    return EXIT_SUCCESS;
}
