/*
 * A program that uses the library as little as proves that it is there: compiled,
 * linked, loaded, and at work. consumers.py builds it in the ways consumers do.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Both ways to write it are in use, and may meet in one program. */
#include <vfio-user/libvfio-user.h>
#include <vfio-user/pci_defs.h>
#ifdef SHORT_INCLUDES
#include "libvfio-user.h"
#include "pci_caps/px.h"
#endif

static void
require(int condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "consumer: %s: %s\n", what, strerror(errno));
        exit(EXIT_FAILURE);
    }
}

static int log_lines;

static void
on_log(vfu_ctx_t *ctx, int level, const char *message)
{
    (void)ctx;
    (void)level;
    if (strcmp(message, "number 42") == 0) {
        log_lines++;
    }
}

int
main(int argc, char *argv[])
{
    vfu_ctx_t *ctx;

    require(argc == 2, "usage: consumer SOCKET");
    require(dma_sg_size() == 40, "dma_sg_size");

    ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                         VFU_DEV_TYPE_PCI);
    require(ctx != NULL, "vfu_create_ctx");
    require(vfu_setup_log(ctx, on_log, LOG_DEBUG) == 0, "vfu_setup_log");
    vfu_log(ctx, LOG_INFO, "number %d", 42);
    require(log_lines == 1, "vfu_log");
    require(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) == 0,
            "vfu_pci_init");
    vfu_pci_set_id(ctx, 0x1234, 0x5678, 0, 0);
    require(vfu_pci_get_config_space(ctx)->hdr.id.did == 0x5678, "vfu_pci_get_config_space");
    require(vfu_realize_ctx(ctx) == 0, "vfu_realize_ctx");
    require(access(argv[1], F_OK) == 0, "the socket exists");
    require(vfu_attach_ctx(ctx) == -1 && errno == EAGAIN, "vfu_attach_ctx");
    vfu_destroy_ctx(ctx);
    require(access(argv[1], F_OK) == -1 && errno == ENOENT, "the socket has gone");

    puts("consumer: fine");
    return EXIT_SUCCESS;
}
