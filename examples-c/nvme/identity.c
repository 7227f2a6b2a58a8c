/*
 * nvme: what a namespace is called.
 *
 * Who opens the same file, or the same block device, gets the same names, so that a
 * disk keeps its own when its server is started anew or it moves to another. Two
 * disks in one guest must not have a name in common: guests refuse the second. Inode
 * numbers are small and close together, so all their bits are spread over all bits
 * of the names.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "controller.h"

/* The finalizer of MurmurHash3: one to one, and each bit that goes in turns half of those that come out. */
static uint64_t
mix(uint64_t value)
{
    value ^= value >> 33;
    value *= 0xff51afd7ed558ccdu;
    value ^= value >> 33;
    value *= 0xc4ceb9fe1a85ec53u;
    value ^= value >> 33;
    return value;
}

/* 128 bits, in two lanes, of two numbers and what they are. */
static void
hash(uint64_t kind, uint64_t a, uint64_t b, uint64_t out[2])
{
    out[0] = mix(mix(mix(kind + 0x9e3779b97f4a7c15u) ^ a) + b);
    out[1] = mix(mix(mix(kind + 0xd1b54a32d192ed03u) ^ b) + a);
}

/* The UUID of a file, or of a block device, which has no inode of its own. */
void
make_uuid(bool is_device, uint64_t device, uint64_t inode, uint8_t uuid[16])
{
    uint64_t parts[2];

    hash(is_device, device, inode, parts);
    memcpy(uuid, parts, sizeof(parts));
    uuid[6] = 0x80 | (uuid[6] & 0x0f); /* version 8: of our own making */
    uuid[8] = 0x80 | (uuid[8] & 0x3f);
}

void
format_uuid(const uint8_t uuid[16], char text[37])
{
    for (int i = 0; i < 16; i++) {
        text += sprintf(text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
}

/*
 * 20 characters are what the specification has for it: too few for a UUID, and people
 * who choose UUIDs choose them alike, so it is of all their bits.
 */
void
format_serial_number(const uint8_t uuid[16], char text[21])
{
    uint64_t parts[2];

    memcpy(parts, uuid, sizeof(parts));
    hash(2, parts[0], parts[1], parts);
    snprintf(text, 21, "%016" PRIx64 "%04x", parts[0], (unsigned)(parts[1] & 0xffff));
}
