/*
 * What contexts keep that have nothing to do: memory that is the process's alone, by
 * what the kernel says of it before and after there are many.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include "client.h"

enum { CONTEXTS = 200, MOST_KIB = 16, MOST_WITH_CLIENT_KIB = 20 };

static vfu_ctx_t *contexts[CONTEXTS];
static int clients[CONTEXTS];
static char paths[CONTEXTS][sizeof(socket_path) + 8];

static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx, (void)buf, (void)offset, (void)is_write;
    return count;
}

static void
dma_nothing(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx, (void)info;
}

static long
resident(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = -1;

    CHECK(file != NULL);
    while (fgets(line, sizeof(line), file) != NULL) {
        sscanf(line, "Anonymous: %ld kB", &kib);
    }
    fclose(file);
    CHECK(kib >= 0);
    return kib;
}

static void
make(int i)
{
    snprintf(paths[i], sizeof(paths[i]), "%s%d", socket_path, i);
    contexts[i] = vfu_create_ctx(VFU_TRANS_SOCK, paths[i], LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(contexts[i] != NULL);
    CHECK_EQ(vfu_pci_init(contexts[i], VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_region(contexts[i], 0, 4096, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                              -1, 0), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(contexts[i], VFU_DEV_MSIX_IRQ, 16), 0);
    CHECK_EQ(vfu_setup_device_dma(contexts[i], 1024, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_realize_ctx(contexts[i]), 0);
}

static void
attach(int i)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(clients[i] >= 0);
    strncpy(address.sun_path, paths[i], sizeof(address.sun_path) - 1);
    CHECK_EQ(connect(clients[i], (struct sockaddr *)&address, sizeof(address)), 0);
    client_send_version(clients[i]);
    CHECK_EQ(vfu_attach_ctx(contexts[i]), 0);
    client_recv_version(clients[i]);
    CHECK_EQ(vfu_run_ctx(contexts[i]), 0);
}

static void
end(int i)
{
    close(clients[i]);
    CHECK_FAILS(vfu_run_ctx(contexts[i]), ENOTCONN);
    vfu_destroy_ctx(contexts[i]);
}

static void
check_each(const char *what, long before, long most)
{
    long each = (resident() - before + CONTEXTS - 2) / (CONTEXTS - 1);

    printf("%s: %ld KiB\n", what, each);
    CHECK(each > 0 && each <= most);
}

static void
an_idle_context_is_small(void)
{
    long before;

    /* What the process has once, and this program's own. */
    make(0);
    attach(0);
    memset(contexts + 1, 0xff, sizeof(contexts) - sizeof(contexts[0]));
    memset(clients + 1, 0xff, sizeof(clients) - sizeof(clients[0]));
    memset(paths[1], 0xff, sizeof(paths) - sizeof(paths[0]));
    before = resident();
    for (int i = 1; i < CONTEXTS; i++) {
        make(i);
    }
    check_each("a context", before, MOST_KIB);
    for (int i = 1; i < CONTEXTS; i++) {
        attach(i);
    }
    check_each("a context with a client", before, MOST_WITH_CLIENT_KIB);
    for (int i = 0; i < CONTEXTS; i++) {
        end(i);
    }
}

int
main(void)
{
    make_socket_folder();
    RUN(an_idle_context_is_small);
    remove_socket_folder();
    return check_result();
}
