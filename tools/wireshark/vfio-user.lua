-- vfio-user for Wireshark and tshark: shows the files of `vfu trace --write`.
--
--   wireshark -X lua_script:vfio-user.lua FILE.pcapng
--
-- or copy it into the folder "Personal Lua Plugins" (Help, About Wireshark, Folders).
-- Filters are the names of the fields below: vfio_user.command == 9, vfio_user.region == 0,
-- vfio_user.time > 0.001, vfio_user.is_error.
--
-- A packet has the link type USER0 (147). A pseudo header that is not on the wire comes
-- first, little-endian:
--
--   offset  bytes
--        0      1  version, 1
--        1      1  flags: 1 the server sent it, 2 on the twin socket, 4 it is no message, but
--                  bytes of a stream that is not vfio-user
--        2      2  number of descriptors
--        4      4  number of the connection
--        8      4  size of the pseudo header with the descriptors: the message begins there
--       12      4  zero
--       16         for each descriptor: kind (1), length of the name (1), size (8), name
--
-- Messages have the byte order of the host, which is taken to be little-endian, too.

local vfio_user = Proto("vfio_user", "vfio-user")
local f = {}

local COMMANDS = {
    [1] = "VERSION", [2] = "DMA_MAP", [3] = "DMA_UNMAP", [4] = "DEVICE_GET_INFO",
    [5] = "DEVICE_GET_REGION_INFO", [6] = "DEVICE_GET_REGION_IO_FDS", [7] = "DEVICE_GET_IRQ_INFO",
    [8] = "DEVICE_SET_IRQS", [9] = "REGION_READ", [10] = "REGION_WRITE", [11] = "DMA_READ",
    [12] = "DMA_WRITE", [13] = "DEVICE_RESET", [15] = "REGION_WRITE_MULTI", [16] = "DEVICE_FEATURE",
    [17] = "MIG_DATA_READ", [18] = "MIG_DATA_WRITE",
}
local REGIONS = {
    [0] = "BAR0", [1] = "BAR1", [2] = "BAR2", [3] = "BAR3", [4] = "BAR4", [5] = "BAR5", [6] = "ROM",
    [7] = "CONFIG", [8] = "VGA",
}
local IRQS = { [0] = "INTx", [1] = "MSI", [2] = "MSI-X", [3] = "ERR", [4] = "REQ" }
local KINDS = {
    [0] = "other", [1] = "memfd", [2] = "file", [3] = "eventfd", [4] = "socket", [5] = "pipe", [6] = "device",
}
local FEATURES = {
    [1] = "MIGRATION", [2] = "MIG_DEVICE_STATE", [6] = "DMA_LOGGING_START", [7] = "DMA_LOGGING_STOP",
    [8] = "DMA_LOGGING_REPORT",
}
local STATES = {
    [0] = "ERROR", [1] = "STOP", [2] = "RUNNING", [3] = "STOP_COPY", [4] = "RESUMING", [5] = "RUNNING_P2P",
    [6] = "PRE_COPY", [7] = "PRE_COPY_P2P",
}
local TYPES = { [0] = "command", [1] = "reply" }
local SENDERS = { [false] = "client", [true] = "server" }

-- Fields, under vfio_user.NAME ---------------------------------------------------

local function number(name, title, bits, base, names, mask)
    f[name] = ProtoField["uint" .. bits]("vfio_user." .. name, title, base, names, mask)
end

local function flag(name, title, bits, mask)
    f[name] = ProtoField.bool("vfio_user." .. name, title, bits, nil, mask)
end

local function bytes(name, title)
    f[name] = ProtoField.bytes("vfio_user." .. name, title)
end

-- The pseudo header.
number("trace_version", "Version", 8, base.DEC)
flag("from_server", "Sent by the server", 8, 1)
flag("twin", "On the twin socket", 8, 2)
flag("no_message", "Not a message", 8, 4)
number("descriptors", "Descriptors", 16, base.DEC)
number("connection", "Connection", 32, base.DEC)
f.descriptor = ProtoField.string("vfio_user.descriptor", "Descriptor")
number("descriptor_kind", "Kind", 8, base.DEC, KINDS)
f.descriptor_name = ProtoField.string("vfio_user.descriptor_name", "Name")
number("descriptor_size", "Size", 64, base.HEX)

-- The header.
number("id", "Message ID", 16, base.DEC)
number("command", "Command", 16, base.DEC, COMMANDS)
number("size", "Message size", 32, base.DEC)
number("header_flags", "Flags", 32, base.HEX)
number("type", "Type", 32, base.DEC, TYPES, 0xf)
flag("no_reply", "No reply wanted", 32, 0x10)
flag("is_error", "Error", 32, 0x20)
number("errno", "Errno", 32, base.DEC)
f.request_in = ProtoField.framenum("vfio_user.request_in", "Command in", base.NONE, frametype.REQUEST)
f.reply_in = ProtoField.framenum("vfio_user.reply_in", "Reply in", base.NONE, frametype.RESPONSE)
f.time = ProtoField.double("vfio_user.time", "Seconds to the reply")

-- What messages have in common.
number("argsz", "argsz", 32, base.DEC)
number("flags", "flags", 32, base.HEX)
number("address", "Address", 64, base.HEX)
number("length", "Size", 64, base.HEX)
number("offset", "Offset", 64, base.HEX)
number("region", "Region", 32, base.DEC, REGIONS)
number("irq", "Interrupt type", 32, base.DEC, IRQS)
number("count", "Count", 32, base.DEC)
number("count64", "Count", 64, base.DEC)
number("start", "First vector", 32, base.DEC)
bytes("data", "Data")
bytes("payload", "Payload")

-- VERSION
number("major", "Major version", 16, base.DEC)
number("minor", "Minor version", 16, base.DEC)
f.capabilities = ProtoField.string("vfio_user.capabilities", "Capabilities")

-- DMA_MAP, DMA_UNMAP
flag("dma_read", "The device may read", 32, 1)
flag("dma_write", "The device may write", 32, 2)
flag("dma_mmap", "The descriptor is mapped", 32, 4)
flag("dma_file_io", "The descriptor is read and written", 32, 8)
flag("unmap_bitmap", "Get the dirty bitmap", 32, 1)
flag("unmap_all", "All regions", 32, 2)
number("pgsize", "Page size", 64, base.HEX)
number("bitmap_size", "Bitmap size", 64, base.DEC)
bytes("bitmap", "Bitmap")

-- DEVICE_GET_INFO and its relatives
flag("device_reset", "Can be reset", 32, 1)
flag("device_pci", "PCI device", 32, 2)
number("num_regions", "Regions", 32, base.DEC)
number("num_irqs", "Interrupt types", 32, base.DEC)
flag("region_read", "Readable", 32, 1)
flag("region_write", "Writable", 32, 2)
flag("region_mmap", "Mappable", 32, 4)
flag("region_caps", "Capabilities follow", 32, 8)
number("cap_offset", "First capability", 32, base.DEC)
number("cap_id", "Capability", 16, base.DEC, { [1] = "sparse mmap" })
number("cap_version", "Capability version", 16, base.DEC)
number("cap_next", "Next capability", 32, base.DEC)
number("nr_areas", "Areas", 32, base.DEC)
number("area_offset", "Area offset", 64, base.HEX)
number("area_size", "Area size", 64, base.HEX)
number("io_fd_index", "Descriptor", 32, base.DEC)
number("io_fd_type", "Type", 32, base.DEC, { [0] = "ioeventfd", [1] = "ioregionfd", [2] = "ioeventfd with shadow" })
number("io_fd_flags", "Flags", 32, base.HEX)
number("shadow_fd_index", "Descriptor of the shadow", 32, base.DEC)
number("shadow_offset", "Offset of the shadow", 64, base.HEX)
number("datamatch", "Value that signals", 64, base.HEX)
flag("irq_eventfd", "Signals eventfds", 32, 1)
flag("irq_maskable", "Maskable", 32, 2)
flag("irq_automasked", "Masks itself", 32, 4)

-- DEVICE_SET_IRQS
flag("data_none", "No data", 32, 1)
flag("data_bool", "Data are booleans", 32, 2)
flag("data_eventfd", "Data are eventfds", 32, 4)
flag("action_mask", "Mask", 32, 8)
flag("action_unmask", "Unmask", 32, 16)
flag("action_trigger", "Trigger", 32, 32)

-- REGION_WRITE_MULTI
number("wr_cnt", "Writes", 64, base.DEC)

-- DEVICE_FEATURE
number("feature", "Feature", 32, base.DEC, FEATURES, 0xffff)
flag("feature_get", "Get", 32, 0x10000)
flag("feature_set", "Set", 32, 0x20000)
flag("feature_probe", "Probe", 32, 0x40000)
flag("stop_copy", "STOP_COPY", 64, 1)
flag("p2p", "P2P", 64, 2)
flag("pre_copy", "PRE_COPY", 64, 4)
number("device_state", "Device state", 32, base.DEC, STATES)
number("data_fd", "data_fd", 32, base.DEC)
number("page_size", "Page size", 64, base.HEX)
number("num_ranges", "Ranges", 32, base.DEC)
number("iova", "IOVA", 64, base.HEX)

local too_short = ProtoExpert.new("vfio_user.too_short", "The message is shorter than what it says is in it",
    expert.group.MALFORMED, expert.severity.ERROR)
local unasked = ProtoExpert.new("vfio_user.unasked", "A reply to no command that was seen",
    expert.group.SEQUENCE, expert.severity.WARN)
local failed = ProtoExpert.new("vfio_user.failed", "An error reply", expert.group.RESPONSE_CODE, expert.severity.NOTE)

vfio_user.fields = f
vfio_user.experts = { too_short, unasked, failed }

-- Commands by who sent them, and pairs of packets --------------------------------

local pending, pairs_of = {}, {}

function vfio_user.init()
    pending, pairs_of = {}, {}
end

-- Reading a payload --------------------------------------------------------------

-- Takes fields from the front. A field that is not there, because the message is too short, is nil, and
-- so are all behind it; `short` tells.
local Cursor = {}
Cursor.__index = Cursor

function Cursor.new(range, tree)
    return setmetatable({ range = range, at = 0, tree = tree, short = false }, Cursor)
end

function Cursor:left()
    return self.range and self.range:len() - self.at or 0
end

function Cursor:take(size)
    if self.short or self:left() < size then
        self.short = true
        return nil
    end
    local part = self.range(self.at, size)
    self.at = self.at + size
    return part
end

function Cursor:add(field, size)
    local part = self:take(size)
    if part == nil then
        return nil
    end
    self.tree:add_le(field, part)
    return size == 8 and part:le_uint64() or part:le_uint()
end

function Cursor:flags(size, ...)
    local part = self:take(size)
    if part == nil then
        return nil
    end
    local tree = size == 4 and self.tree:add_le(f.flags, part) or self.tree
    for _, field in ipairs({ ... }) do
        tree:add_le(field, part)
    end
    return size == 4 and part:le_uint() or part:le_uint64()
end

function Cursor:skip(size)
    self:take(size)
end

function Cursor:rest(field)
    if self:left() > 0 then
        self.tree:add(field, self.range(self.at))
        self.at = self.range:len()
    end
end

local function hex(value)
    return value and ("0x" .. (type(value) == "userdata" and value:tohex():gsub("^0+(.)", "%1") or string.format("%x", value))) or "?"
end

local function region_name(index)
    return index and (REGIONS[index] or ("region " .. index)) or "?"
end

local function irq_name(index)
    return index and (IRQS[index] or ("type " .. index)) or "?"
end

-- Each returns what is worth a place in the column "Info".

local function version(c)
    local major, minor = c:add(f.major, 2), c:add(f.minor, 2)
    if c:left() > 0 then
        local text = c.range(c.at)
        local last = text:len() - 1
        -- The NUL at the end may be missing.
        local has_nul = text(last, 1):uint() == 0
        c.tree:add(f.capabilities, text, has_nul and (last > 0 and text(0, last):string() or "") or text:string())
        c.at = c.range:len()
    end
    return (major or "?") .. "." .. (minor or "?")
end

local function dma_map(c, is_reply)
    if is_reply then
        return ""
    end
    c:add(f.argsz, 4)
    c:flags(4, f.dma_read, f.dma_write, f.dma_mmap, f.dma_file_io)
    c:add(f.offset, 8)
    local address, size = c:add(f.address, 8), c:add(f.length, 8)
    return hex(address) .. "+" .. hex(size)
end

local function dma_unmap(c, is_reply)
    c:add(f.argsz, 4)
    local flags = c:flags(4, f.unmap_bitmap, f.unmap_all)
    local address, size = c:add(f.address, 8), c:add(f.length, 8)
    if flags and flags % 2 == 1 then
        c:add(f.pgsize, 8)
        c:add(f.bitmap_size, 8)
        c:rest(f.bitmap)
    end
    return hex(address) .. "+" .. hex(size)
end

local function get_info(c, is_reply)
    c:add(f.argsz, 4)
    c:flags(4, f.device_reset, f.device_pci)
    local regions, irqs = c:add(f.num_regions, 4), c:add(f.num_irqs, 4)
    return is_reply and string.format("%s regions, %s interrupt types", regions or "?", irqs or "?") or ""
end

local function region_info(c, is_reply)
    c:add(f.argsz, 4)
    c:flags(4, f.region_read, f.region_write, f.region_mmap, f.region_caps)
    local index, cap = c:add(f.region, 4), c:add(f.cap_offset, 4)
    local size = c:add(f.length, 8)
    c:add(f.offset, 8)
    -- A list that leads back would not end.
    local seen = {}
    while is_reply and cap and cap > 0 and not seen[cap] do
        if cap >= c.range:len() then
            c.short = true
            break
        end
        seen[cap] = true
        c.at = cap
        local id = c:add(f.cap_id, 2)
        c:add(f.cap_version, 2)
        cap = c:add(f.cap_next, 4)
        if id == 1 then
            local areas = c:add(f.nr_areas, 4) or 0
            c:skip(4)
            for _ = 1, areas do
                if not c:add(f.area_offset, 8) then
                    break
                end
                c:add(f.area_size, 8)
            end
        end
    end
    return region_name(index) .. (is_reply and " size " .. hex(size) or "")
end

local function region_io_fds(c, is_reply)
    c:add(f.argsz, 4)
    c:add(f.flags, 4)
    local index, count = c:add(f.region, 4), c:add(f.count, 4)
    while is_reply and c:left() >= 48 do
        c:add(f.offset, 8)
        c:add(f.length, 8)
        c:add(f.io_fd_index, 4)
        c:add(f.io_fd_type, 4)
        c:add(f.io_fd_flags, 4)
        c:add(f.shadow_fd_index, 4)
        c:add(f.shadow_offset, 8)
        c:add(f.datamatch, 8)
    end
    return region_name(index) .. (is_reply and string.format(", %s entries", count or "?") or "")
end

local function irq_info(c, is_reply)
    c:add(f.argsz, 4)
    c:flags(4, f.irq_eventfd, f.irq_maskable, f.irq_automasked)
    local index, count = c:add(f.irq, 4), c:add(f.count, 4)
    return irq_name(index) .. (is_reply and string.format(", %s vectors", count or "?") or "")
end

local function set_irqs(c, is_reply)
    if is_reply then
        return ""
    end
    c:add(f.argsz, 4)
    c:flags(4, f.data_none, f.data_bool, f.data_eventfd, f.action_mask, f.action_unmask, f.action_trigger)
    local index, start, count = c:add(f.irq, 4), c:add(f.start, 4), c:add(f.count, 4)
    c:rest(f.data)
    return string.format("%s %s+%s", irq_name(index), start or "?", count or "?")
end

local function region_access(c, has_data)
    local offset, region, count = c:add(f.offset, 8), c:add(f.region, 4), c:add(f.count, 4)
    if has_data then
        c:rest(f.data)
    end
    return string.format("%s %s+%s", region_name(region), hex(offset), count or "?")
end

local function write_multi(c, is_reply)
    local count = c:add(f.wr_cnt, 8)
    while not is_reply and c:left() >= 24 do
        c:add(f.offset, 8)
        c:add(f.region, 4)
        c:add(f.count, 4)
        c.tree:add(f.data, c:take(8))
    end
    return tostring(count or "?") .. " writes"
end

local function dma_access(c, has_data)
    local address, count = c:add(f.address, 8), c:add(f.count64, 8)
    if has_data then
        c:rest(f.data)
    end
    return hex(address) .. "+" .. hex(count)
end

local function feature(c, is_reply)
    c:add(f.argsz, 4)
    local flags = c:flags(4, f.feature, f.feature_get, f.feature_set, f.feature_probe)
    if not flags then
        return "?"
    end
    local which = flags % 0x10000
    local sets, probes = flags / 0x20000 % 2 >= 1, flags / 0x40000 % 2 >= 1
    local info = FEATURES[which] or ("feature " .. which)
    if probes then
        return info .. " probe"
    end
    if which == 1 and is_reply then
        c:flags(8, f.stop_copy, f.p2p, f.pre_copy)
    elseif which == 2 and (is_reply or sets) then
        local state = c:add(f.device_state, 4)
        c:add(f.data_fd, 4)
        return info .. " " .. (state and (STATES[state] or state) or "?")
    elseif which == 6 then
        c:add(f.page_size, 8)
        c:add(f.num_ranges, 4)
        c:skip(4)
        while c:left() >= 16 do
            c:add(f.iova, 8)
            c:add(f.length, 8)
        end
    elseif which == 8 then
        local iova, length = c:add(f.iova, 8), c:add(f.length, 8)
        c:add(f.page_size, 8)
        c:rest(f.bitmap)
        return info .. " " .. hex(iova) .. "+" .. hex(length)
    else
        c:rest(f.payload)
    end
    return info
end

local function mig_data(c, has_data)
    c:add(f.argsz, 4)
    local size = c:add(f.count, 4)
    if has_data then
        c:rest(f.data)
    end
    return (size or "?") .. " bytes"
end

local PAYLOADS = {
    [1] = version, [2] = dma_map, [3] = dma_unmap, [4] = get_info, [5] = region_info, [6] = region_io_fds,
    [7] = irq_info, [8] = set_irqs,
    [9] = function(c, is_reply) return region_access(c, is_reply) end,
    [10] = function(c, is_reply) return region_access(c, not is_reply) end,
    [11] = function(c, is_reply) return dma_access(c, is_reply) end,
    [12] = function(c, is_reply) return dma_access(c, not is_reply) end,
    [13] = function() return "" end,
    [15] = write_multi, [16] = feature,
    [17] = function(c, is_reply) return mig_data(c, is_reply) end,
    [18] = function(c, is_reply) return is_reply and "" or mig_data(c, true) end,
}

-- A packet -----------------------------------------------------------------------

local function pseudo_header(tvb, tree)
    local flags = tvb(1, 1):uint()
    local size = tvb(8, 4):le_uint()
    local head = tree:add(vfio_user, tvb(0, math.min(size, tvb:len())), "vfio-user trace")
    head:add(f.trace_version, tvb(0, 1))
    head:add(f.from_server, tvb(1, 1))
    head:add(f.twin, tvb(1, 1))
    head:add(f.no_message, tvb(1, 1))
    head:add_le(f.descriptors, tvb(2, 2))
    head:add_le(f.connection, tvb(4, 4))
    local at, count = 16, tvb(2, 2):le_uint()
    local kinds = {}
    for _ = 1, count do
        if at + 10 > tvb:len() or at + 10 + tvb(at + 1, 1):uint() > tvb:len() then
            break
        end
        local length = tvb(at + 1, 1):uint()
        local kind = KINDS[tvb(at, 1):uint()] or "other"
        local name = length > 0 and tvb(at + 10, length):string() or ""
        local fd = head:add(f.descriptor, tvb(at, 10 + length), kind .. (name ~= "" and " " .. name or ""))
        fd:add(f.descriptor_kind, tvb(at, 1))
        fd:add_le(f.descriptor_size, tvb(at + 2, 8))
        if length > 0 then
            fd:add(f.descriptor_name, tvb(at + 10, length))
        end
        kinds[#kinds + 1] = kind
        at = at + 10 + length
    end
    return {
        from_server = flags % 2 == 1,
        twin = math.floor(flags / 2) % 2 == 1,
        no_message = math.floor(flags / 4) % 2 == 1,
        connection = tvb(4, 4):le_uint(),
        size = size,
        kinds = kinds,
    }
end

-- Finds the other one of command and reply.
local function pair(pinfo, tree, head, message)
    local place = head.connection .. (head.twin and " twin " or " main ")
    if not pinfo.visited then
        local now = pinfo.rel_ts
        if not message.is_reply then
            if not message.no_reply then
                pending[place .. SENDERS[head.from_server] .. message.id] = { pinfo.number, now, message.command }
            end
        else
            local key = place .. SENDERS[not head.from_server] .. message.id
            local asked = pending[key]
            if asked and asked[3] == message.command then
                pending[key] = nil
                pairs_of[pinfo.number] = { asked[1], now - asked[2] }
                pairs_of[asked[1]] = { pinfo.number }
            end
        end
    end
    local other = pairs_of[pinfo.number]
    if other and message.is_reply then
        tree:add(f.request_in, other[1]):set_generated()
        tree:add(f.time, other[2]):set_generated()
    elseif other then
        tree:add(f.reply_in, other[1]):set_generated()
    elseif message.is_reply then
        tree:add_proto_expert_info(unasked)
    end
end

function vfio_user.dissector(tvb, pinfo, root)
    if tvb:len() < 16 or tvb(0, 1):uint() ~= 1 then
        return 0
    end
    pinfo.cols.protocol = "vfio-user"
    local head = pseudo_header(tvb, root)
    pinfo.cols.src = SENDERS[head.from_server]
    pinfo.cols.dst = SENDERS[not head.from_server]
    if head.size >= tvb:len() then
        return tvb:len()
    end
    local range = tvb(head.size)
    local tree = root:add(vfio_user, range, "vfio-user")
    if head.no_message or range:len() < 16 then
        pinfo.cols.info = "not vfio-user"
        tree:add(f.payload, range)
        return tvb:len()
    end

    local message = {
        id = range(0, 2):le_uint(),
        command = range(2, 2):le_uint(),
        is_reply = range(8, 4):le_uint() % 16 == 1,
        no_reply = math.floor(range(8, 4):le_uint() / 16) % 2 == 1,
        is_error = math.floor(range(8, 4):le_uint() / 32) % 2 == 1,
        errno = range(12, 4):le_uint(),
    }
    tree:add_le(f.id, range(0, 2))
    tree:add_le(f.command, range(2, 2))
    tree:add_le(f.size, range(4, 4))
    local flags = tree:add_le(f.header_flags, range(8, 4))
    flags:add_le(f.type, range(8, 4))
    flags:add_le(f.no_reply, range(8, 4))
    flags:add_le(f.is_error, range(8, 4))
    tree:add_le(f.errno, range(12, 4))
    pair(pinfo, tree, head, message)

    local name = COMMANDS[message.command] or ("command " .. message.command)
    local info = name .. (message.is_reply and " reply" or "") .. (message.no_reply and " posted" or "")
    local payload = range:len() > 16 and range(16) or nil
    if message.is_reply and message.is_error then
        info = info .. " error " .. message.errno
        tree:add_proto_expert_info(failed)
    else
        local decode = PAYLOADS[message.command]
        local cursor = Cursor.new(payload, tree)
        if decode then
            local words = decode(cursor, message.is_reply)
            info = info .. (words ~= "" and " " .. words or "")
        end
        if cursor.short then
            tree:add_proto_expert_info(too_short)
        else
            cursor:rest(f.payload)
        end
    end
    if #head.kinds > 0 then
        info = info .. " [" .. table.concat(head.kinds, ", ") .. "]"
    end
    pinfo.cols.info = (head.twin and "twin: " or "") .. info
    tree:append_text(", " .. info)
    return tvb:len()
end

DissectorTable.get("wtap_encap"):add(wtap.USER0, vfio_user)
