/*
 * In the guest: sets the outputs of the first GPIO chip and sees the inputs follow, which the
 * device wires to them; counts the edges that arrive by interrupt. The character device of the
 * kernel, as libgpiod uses it.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <fcntl.h>
#include <linux/gpio.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LINES = 16 };

static int
request(int chip, unsigned first, unsigned long long flags)
{
    struct gpio_v2_line_request lines = { .num_lines = LINES, .config.flags = flags };

    for (unsigned i = 0; i < LINES; i++) {
        lines.offsets[i] = first + i;
    }
    strcpy(lines.consumer, "test");
    if (ioctl(chip, GPIO_V2_GET_LINE_IOCTL, &lines) < 0) {
        perror("GPIO_V2_GET_LINE_IOCTL");
        return -1;
    }
    return lines.fd;
}

int
main(void)
{
    struct gpiochip_info info;
    int chip = open("/dev/gpiochip0", O_RDWR), outputs, inputs, edges = 0, wrong = 0;
    unsigned before = 0, expected = 0;

    if (chip < 0 || ioctl(chip, GPIO_GET_CHIPINFO_IOCTL, &info) < 0) {
        perror("/dev/gpiochip0");
        return 1;
    }
    printf("%s: %u lines\n", info.label, info.lines);
    outputs = request(chip, 0, GPIO_V2_LINE_FLAG_OUTPUT);
    inputs = request(chip, LINES, GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_RISING | GPIO_V2_LINE_FLAG_EDGE_FALLING);
    if (info.lines != 2 * LINES || outputs < 0 || inputs < 0) {
        return 1;
    }
    for (unsigned i = 0; i < 32; i++) {
        struct gpio_v2_line_values set = { .bits = 0x1234 * (i + 1) & 0xffff, .mask = 0xffff };
        struct gpio_v2_line_values get = { .mask = 0xffff };

        ioctl(outputs, GPIO_V2_LINE_SET_VALUES_IOCTL, &set);
        ioctl(inputs, GPIO_V2_LINE_GET_VALUES_IOCTL, &get);
        if (get.bits != set.bits) {
            printf("set %#llx, read %#llx\n", (unsigned long long)set.bits, (unsigned long long)get.bits);
            wrong++;
        }
        expected += before != set.bits;
        before = set.bits;
    }
    /* The first must come; the rest is counted, and ends when no more come. */
    for (int patience = 60000;; patience = 100) {
        struct pollfd event = { .fd = inputs, .events = POLLIN };
        struct gpio_v2_line_event lines[16];
        ssize_t got = poll(&event, 1, patience) > 0 ? read(inputs, lines, sizeof(lines)) : 0;

        if (got <= 0) {
            break;
        }
        edges += got / (ssize_t)sizeof(lines[0]);
    }
    printf("%u changes, %d edges by interrupt, %d wrong\n", expected, edges, wrong);
    return wrong != 0 || edges == 0;
}
