/*
 * null: the smallest device.
 *
 * One PCI device with one memory BAR of 4 KiB that behaves like /dev/null and
 * /dev/zero: writes go nowhere, reads give zeros. What every device program
 * does is all here, in order: create a context, describe the device, realize
 * it, and then attach a client and run it, again and again.
 *
 *     null [--verbose] [--once] [--socket-path=]PATH
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <vfio-user/libvfio-user.h>

enum {
    /* An id that belongs to nobody; your device has one of its own. */
    NULL_VENDOR_ID = 0x1234,
    NULL_DEVICE_ID = 0x0000,
    /* Sizes of BARs are powers of two, of at least 16 bytes. */
    NULL_BAR0_SIZE = 0x1000,
};

static volatile sig_atomic_t stop;

/*
 * The library restarts nothing: a call that waits returns EINTR when a signal
 * handler has run (and was installed without SA_RESTART). A signal just before
 * the call waits would come too early for that; therefore the handler has
 * itself called again, each second until the program has left.
 */
static void
on_signal(int signal)
{
    (void)signal;
    stop = 1;
    alarm(1);
}

static void
catch_signals(void)
{
    struct sigaction action = { .sa_handler = on_signal };

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
}

static void
on_log(vfu_ctx_t *ctx, int level, const char *message)
{
    (void)ctx;
    fprintf(stderr, "null[%d]: %s\n", level, message);
}

/*
 * The library calls this for every access of the client to the region. It has
 * checked that offset and count lie inside the region. The result is the number
 * of bytes done; -1 with errno set refuses the access.
 */
static ssize_t
bar0_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    vfu_log(ctx, LOG_DEBUG, "%s of %zu bytes at %#llx",
            is_write ? "write" : "read", count, (long long)offset);
    if (!is_write) {
        memset(buf, 0, count);
    }
    return count;
}

/* Says what the device is. Everything here is done before clients come. */
static void
describe_device(vfu_ctx_t *ctx)
{
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        err(EXIT_FAILURE, "vfu_pci_init");
    }
    vfu_pci_set_id(ctx, NULL_VENDOR_ID, NULL_DEVICE_ID, 0, 0);

    /* The last four arguments would let the client map the region: no areas, no file. */
    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, NULL_BAR0_SIZE, bar0_access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0) {
        err(EXIT_FAILURE, "vfu_setup_region");
    }

    if (vfu_realize_ctx(ctx) < 0) {
        err(EXIT_FAILURE, "vfu_realize_ctx");
    }
}

/* Serves one client after the other, until a signal comes or, with once, one has left. */
static void
serve(vfu_ctx_t *ctx, bool once)
{
    while (!stop) {
        /* Waits for a client and agrees with it on the protocol's version. */
        if (vfu_attach_ctx(ctx) < 0) {
            if (errno != EINTR) {
                /* This client was no good; the next may be. */
                warn("vfu_attach_ctx");
            }
            continue;
        }

        /* Executes what the client asks for; comes back for a signal or an error. */
        int ret;
        do {
            ret = vfu_run_ctx(ctx);
        } while (!stop && (ret >= 0 || errno == EINTR));
        if (stop) {
            return;
        }

        /* ENOTCONN: the client has left, and the context can take the next one. */
        if (errno != ENOTCONN) {
            err(EXIT_FAILURE, "vfu_run_ctx");
        }
        if (once) {
            return;
        }
    }
}

static void
usage(FILE *out)
{
    fputs("Usage: null [OPTION]... [--socket-path=]PATH\n"
          "Serve a PCI device that reads zeros and forgets writes, at the UNIX socket PATH.\n"
          "\n"
          "      --socket-path=PATH  where to listen; must not exist\n"
          "      --once              leave when the first client has left\n"
          "  -v, --verbose           log what the library does\n"
          "  -h, --help              show this help\n", out);
}

int
main(int argc, char *argv[])
{
    static const struct option options[] = {
        { "socket-path", required_argument, NULL, 's' },
        { "once", no_argument, NULL, 'o' },
        { "verbose", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    const char *path = NULL;
    bool once = false;
    bool verbose = false;
    int option;

    while ((option = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
        switch (option) {
        case 's':
            path = optarg;
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
    if (path == NULL || optind != argc) {
        usage(stderr);
        return EXIT_FAILURE;
    }

    catch_signals();

    /* The socket exists from here on; a client that connects waits for the attach. */
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);
    if (ctx == NULL) {
        err(EXIT_FAILURE, "vfu_create_ctx: %s", path);
    }
    vfu_setup_log(ctx, on_log, verbose ? LOG_DEBUG : LOG_ERR);

    describe_device(ctx);
    serve(ctx, once);

    /* Closes the connection and removes the socket. */
    vfu_destroy_ctx(ctx);
    return EXIT_SUCCESS;
}
