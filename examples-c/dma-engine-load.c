/*
 * How the example device dma-engine takes the state of another one: the stream of
 * dma-engine-state.h, in pieces that end anywhere.
 *
 * What comes is put aside, memory and registers, and given to the device when
 * all of it is there and the checksum is right. Whatever is wrong with a stream,
 * the device is the same as before. The stream comes from outside, so nothing
 * in it is believed, not even with a good checksum: the device must not do with
 * it what its own driver couldn't have made it do.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dma-engine-device.h"
#include "dma-engine-state.h"

enum {
    PAGE = DMA_ENGINE_STATE_PAGE_SIZE,
    NR_PAGES = DMA_ENGINE_BAR2_SIZE / PAGE,
};

/* What the next part of the stream is; NOTHING: it has ended. */
enum expected { HEADER, RECORD, PAYLOAD, NOTHING };

struct loading {
    /* What has come so far. */
    uint8_t *memory;
    bool present[NR_PAGES];
    struct engine_state state;
    bool registers, msix_table, work;
    uint64_t checksum;

    /* The part that is coming, and how much of it is here. */
    enum expected expected;
    uint8_t part[sizeof(struct dma_engine_state_page)];
    size_t need;
    size_t have;
    uint64_t skip; /* bytes before it that mean nothing to this version */

    struct dma_engine_state_record record; /* that a PAYLOAD belongs to */
    uint32_t last;                         /* type of the last record that is known */

    int refusal; /* errno, once the stream turned out to be unusable */
};

/*
 * The records that this version knows. Those that have grown since the version
 * that had them first come in more than one length.
 */
static const struct known_record {
    uint32_t type;
    uint32_t first_length;
    uint32_t length;
    bool may_grow;
} known_records[] = {
    { DMA_ENGINE_STATE_PAGE, sizeof(struct dma_engine_state_page),
      sizeof(struct dma_engine_state_page), false },
    { DMA_ENGINE_STATE_REGISTERS, sizeof(struct dma_engine_state_registers),
      sizeof(struct dma_engine_state_registers), true },
    { DMA_ENGINE_STATE_MSIX_TABLE, MSIX_TABLE_SIZE, MSIX_TABLE_SIZE, true },
    { DMA_ENGINE_STATE_WORK, sizeof(struct dma_engine_state_work),
      sizeof(struct dma_engine_state_work), true },
    { DMA_ENGINE_STATE_STATISTICS, sizeof(struct dma_engine_stats),
      sizeof(struct dma_engine_stats), true },
    { DMA_ENGINE_STATE_END, sizeof(struct dma_engine_state_end),
      sizeof(struct dma_engine_state_end), false },
};

static void
expect(struct loading *loading, enum expected expected, size_t need)
{
    loading->expected = expected;
    loading->need = need;
    loading->have = 0;
    /* What is shorter than it might be is zero at the end. */
    memset(loading->part, 0, sizeof(loading->part));
}

struct loading *
begin_loading(void)
{
    struct loading *loading = calloc(1, sizeof(*loading));

    if (loading == NULL) {
        return NULL;
    }
    loading->memory = mmap(NULL, DMA_ENGINE_BAR2_SIZE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (loading->memory == MAP_FAILED) {
        free(loading);
        return NULL;
    }
    loading->checksum = CHECKSUM_START;
    expect(loading, HEADER, sizeof(struct dma_engine_state_header));
    return loading;
}

void
end_loading(struct loading *loading)
{
    if (loading != NULL) {
        munmap(loading->memory, DMA_ENGINE_BAR2_SIZE);
        free(loading);
    }
}

/* Each of the following takes what it was given, or says what is wrong with it. */
typedef const char *refusal_t;

static refusal_t
take_header(struct loading *loading)
{
    struct dma_engine_state_header header;

    memcpy(&header, loading->part, sizeof(header));
    if (header.magic != DMA_ENGINE_STATE_MAGIC) {
        return "it is not of a dma-engine";
    }
    if (header.version != DMA_ENGINE_STATE_VERSION) {
        return "its version is unknown";
    }
    if (header.length < sizeof(header) || header.length > DMA_ENGINE_STATE_HEADER_MAX) {
        return "the header has no good length";
    }
    if (header.memory_size != DMA_ENGINE_BAR2_SIZE || header.page_size != PAGE) {
        return "it is of a device with other memory";
    }
    loading->skip = header.length - sizeof(header);
    expect(loading, RECORD, sizeof(loading->record));
    return NULL;
}

static const struct known_record *
find_known_record(uint32_t type)
{
    for (size_t i = 0; i < sizeof(known_records) / sizeof(known_records[0]); i++) {
        if (known_records[i].type == type) {
            return &known_records[i];
        }
    }
    return NULL;
}

/* Pages may repeat; apart from that, numbers go up. */
static bool
is_in_order(uint32_t last, uint32_t type)
{
    last &= ~DMA_ENGINE_STATE_OPTIONAL;
    type &= ~DMA_ENGINE_STATE_OPTIONAL;
    return type > last || (type == last && type == DMA_ENGINE_STATE_PAGE);
}

static refusal_t
take_record(struct loading *loading)
{
    struct dma_engine_state_record *record = &loading->record;
    const struct known_record *known;

    memcpy(record, loading->part, sizeof(*record));
    known = find_known_record(record->type);
    if (known == NULL) {
        if ((record->type & DMA_ENGINE_STATE_OPTIONAL) == 0) {
            return "it has a record that this version does not know and must not skip";
        }
        loading->skip = record->length;
        expect(loading, RECORD, sizeof(*record));
        return NULL;
    }
    if (!is_in_order(loading->last, record->type)) {
        return "its records are out of order";
    }
    if (record->length < known->first_length
        || (record->length > known->length && !known->may_grow)) {
        return "a record has no good length";
    }
    loading->last = record->type;
    expect(loading, PAYLOAD, record->length < known->length ? record->length : known->length);
    return NULL;
}

static refusal_t
take_page(struct loading *loading)
{
    struct dma_engine_state_page page;

    memcpy(&page, loading->part, sizeof(page));
    if (page.offset % PAGE != 0 || page.offset < DMA_ENGINE_MEMORY_START
        || page.offset >= DMA_ENGINE_BAR2_SIZE) {
        return "a page is not in the memory";
    }
    memcpy(loading->memory + page.offset, page.data, PAGE);
    loading->present[page.offset / PAGE] = true;
    return NULL;
}

static refusal_t
take_registers(struct loading *loading)
{
    struct engine_state *state = &loading->state;
    struct dma_engine_state_registers registers;

    memcpy(&registers, loading->part, sizeof(registers));
    if ((registers.control & ~DMA_ENGINE_CONTROL_ENABLE) != 0
        || (registers.irq_status & ~DMA_ENGINE_IRQ_ALL) != 0
        || (registers.irq_enable & ~DMA_ENGINE_IRQ_ALL) != 0
        || registers.ring_base % sizeof(struct dma_engine_desc) != 0) {
        return "a register has a value that it can't have";
    }
    if (registers.ring_size > DMA_ENGINE_RING_MAX
        || (registers.ring_size != 0 && (registers.ring_head >= registers.ring_size
                                         || registers.ring_tail >= registers.ring_size))
        || (registers.ring_size == 0 && (registers.ring_head != 0 || registers.ring_tail != 0))) {
        return "the ring is not a ring";
    }
    state->control = registers.control;
    state->irq_status = registers.irq_status;
    state->irq_enable = registers.irq_enable;
    state->completed = registers.completed;
    state->error = registers.error;
    state->ring_size = registers.ring_size;
    state->ring_head = registers.ring_head;
    state->ring_tail = registers.ring_tail;
    state->ring_base = registers.ring_base;
    state->result = registers.result;
    state->registers = registers.desc;
    loading->registers = true;
    return NULL;
}

static refusal_t
take_work(struct loading *loading)
{
    struct engine_state *state = &loading->state;
    struct dma_engine_state_work work;

    memcpy(&work, loading->part, sizeof(work));
    if (work.doorbell > 1 || work.origin > FROM_RING) {
        return "the work comes from nowhere";
    }
    if (work.origin == FROM_RING && state->ring_size == 0) {
        return "the work is on a ring that does not exist";
    }
    if (work.origin != FROM_NOWHERE
        && (check_descriptor(&work.desc) != DMA_ENGINE_DONE || work.progress > work.desc.len)) {
        return "the work can't have begun";
    }
    state->doorbell = work.doorbell;
    state->origin = work.origin;
    state->progress = work.progress;
    state->current = work.desc;
    loading->work = true;
    return NULL;
}

/* `before` is the checksum of all that came before this record's payload. */
static refusal_t
take_end(struct loading *loading, uint64_t before)
{
    struct dma_engine_state_end end;

    memcpy(&end, loading->part, sizeof(end));
    if (end.checksum != before) {
        return "the checksum is wrong";
    }
    if (!loading->registers || !loading->msix_table || !loading->work) {
        return "records are missing";
    }
    return NULL;
}

static refusal_t
take_payload(struct loading *loading, uint64_t before)
{
    size_t rest = loading->record.length - loading->need;
    refusal_t refusal = NULL;

    switch (loading->record.type) {
    case DMA_ENGINE_STATE_PAGE:
        refusal = take_page(loading);
        break;
    case DMA_ENGINE_STATE_REGISTERS:
        refusal = take_registers(loading);
        break;
    case DMA_ENGINE_STATE_MSIX_TABLE:
        memcpy(loading->state.msix_table, loading->part, MSIX_TABLE_SIZE);
        loading->msix_table = true;
        break;
    case DMA_ENGINE_STATE_WORK:
        refusal = take_work(loading);
        break;
    case DMA_ENGINE_STATE_STATISTICS:
        memcpy(&loading->state.stats, loading->part, sizeof(loading->state.stats));
        break;
    case DMA_ENGINE_STATE_END:
        refusal = take_end(loading, before);
        expect(loading, NOTHING, 0);
        return refusal;
    }
    loading->skip = rest;
    expect(loading, RECORD, sizeof(loading->record));
    return refusal;
}

/* A part is complete. */
static refusal_t
take_part(struct loading *loading)
{
    uint64_t before = loading->checksum;

    loading->checksum = checksum(before, loading->part, loading->need);
    switch (loading->expected) {
    case HEADER:
        return take_header(loading);
    case RECORD:
        return take_record(loading);
    case PAYLOAD:
        return take_payload(loading, before);
    default:
        return "it goes on after its end";
    }
}

static size_t
skip(struct loading *loading, const uint8_t *buf, size_t count)
{
    count = count < loading->skip ? count : loading->skip;
    loading->checksum = checksum(loading->checksum, buf, count);
    loading->skip -= count;
    return count;
}

static size_t
collect(struct loading *loading, const uint8_t *buf, size_t count)
{
    size_t rest = loading->need - loading->have;

    count = count < rest ? count : rest;
    memcpy(loading->part + loading->have, buf, count);
    loading->have += count;
    return count;
}

/* A call costs what it is given. */
int
load(struct engine *engine, struct loading *loading, const uint8_t *buf, size_t count)
{
    refusal_t refusal = NULL;
    size_t done = 0;

    while (done < count && loading->refusal == 0) {
        if (loading->skip > 0) {
            done += skip(loading, buf + done, count - done);
            continue;
        }
        done += collect(loading, buf + done, count - done);
        if (loading->have == loading->need && (refusal = take_part(loading)) != NULL) {
            vfu_log(engine->ctx, LOG_ERR, "migration data refused: %s", refusal);
            loading->refusal = EINVAL;
        }
    }
    if (loading->refusal != 0) {
        errno = loading->refusal;
        return -1;
    }
    return 0;
}

/*
 * Puts the pages that have come in place. Writing to the file says when there is
 * no memory left for it; writing to the mapping would end the program.
 */
static int
apply_memory(struct engine *engine, const struct loading *loading)
{
    for (size_t page = 0; page < NR_PAGES; page++) {
        off_t offset = (off_t)page * PAGE;

        if (loading->present[page]
            && pwrite(engine->memory_fd, loading->memory + offset, PAGE, offset) != PAGE) {
            return -1;
        }
    }
    return 0;
}

int
apply(struct engine *engine, struct loading *loading)
{
    if (loading == NULL || loading->refusal != 0 || loading->expected != NOTHING) {
        vfu_log(engine->ctx, LOG_ERR, "migration data is not complete");
        errno = EINVAL;
        return -1;
    }
    clear_memory(engine);
    if (apply_memory(engine, loading) < 0) {
        /* The old memory is gone, the new one is not there. */
        vfu_log(engine->ctx, LOG_ERR, "migration data can't be put in place: %m");
        loading->refusal = ENOTRECOVERABLE;
        errno = ENOTRECOVERABLE;
        return -1;
    }
    engine->state = loading->state;
    return 0;
}
