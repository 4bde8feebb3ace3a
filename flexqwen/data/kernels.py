"""The loops over bytes and hashes that scoring spends its time in, compiled by numba when they are first called.

What is compiled is cached beside this file, or in the user's cache folder where that cannot be written.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from flexqwen.data.ngrams import PREFIX_BITS

_FACTOR, _BASE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1342543DE82EF95)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_ONE, _MANY = np.uint64(1), np.uint32((1 << 32) - 1)
_TABLE_RECORDS = 1 << 12  # or more are compared in one table, which stays in the processor's second cache
# Of the first and of the second 8 bytes of a word, those that belong to it, by its length up to 16.
_FIRST = np.array([(1 << 8 * min(size, 8)) - 1 for size in range(17)], np.uint64)
_SECOND = np.array([(1 << 8 * max(size - 8, 0)) - 1 for size in range(17)], np.uint64)
# The white space that is not ASCII, as `str.split` has it, in UTF-8; a 0 behind what has two bytes.
_WIDE = tuple(int.from_bytes(c.encode().ljust(3, b"\0")) for c in map(chr, range(128, 0x3001)) if c.isspace())


def _compile(loop):
    try:
        return njit(cache=True)(loop)
    except RuntimeError:  # neither can be written
        return njit(loop)


def _emit(emit):
    """What numba has no function for: `emit` writes LLVM's code. Of an array and a place, it gets the address."""

    def generate(context, builder, signature, values):
        if len(values) == 2:
            data = context.make_array(signature.args[0])(context, builder, values[0]).data
            values = [builder.gep(data, [values[1]])]
        return emit(builder, *values)

    return generate


@intrinsic
def _read_8(_, data, place):
    """The 8 bytes (uint64) from a place of `data` (uint8) on."""

    def emit(builder, address):
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.int64), _emit(emit)


@intrinsic
def _find_space(_, data, place):
    """Which of the 64 bytes from a place on may begin white space: bits (uint64), the lowest for the first byte."""

    def emit(builder, address):
        block = ir.VectorType(ir.IntType(8), 64)
        read = builder.load(builder.bitcast(address, block.as_pointer()), align=1)

        def fill(byte):
            return ir.Constant(block, [byte] * 64)

        ascii_ = builder.icmp_unsigned("<=", read, fill(0x20))
        two = builder.icmp_unsigned("==", read, fill(0xC2))
        three = builder.icmp_unsigned("==", builder.and_(read, fill(0xFC)), fill(0xE0))
        return builder.bitcast(builder.or_(ascii_, builder.or_(two, three)), ir.IntType(64))

    return types.uint64(data, types.int64), _emit(emit)


@intrinsic
def _lowest(_, bits):
    """Which is the lowest bit (int64) of `bits` (uint64, not 0)."""
    return types.int64(types.uint64), _emit(lambda builder, bits: builder.cttz(bits, ir.Constant(ir.IntType(1), 1)))


@njit
def _measure_space(data, place):
    """How many bytes the white space at a place has, 0 where there is none."""
    lead = data[place]
    if lead <= 0x20:
        return 1 if lead >= 28 or 9 <= lead <= 13 else 0
    width = 2 if lead == 0xC2 else 3
    code = lead << 16 | data[place + 1] << 8 | (data[place + 2] if width == 3 else 0)
    for wide in _WIDE:
        if wide == code:
            return width
    return 0


@njit
def _mix(value):
    """Mixes a hash, so that any bits of it tell it apart; no two become one."""
    value = (value ^ (value >> np.uint64(32))) * _FACTOR
    return value ^ (value >> np.uint64(32))


@njit
def _hash_word(data, start, end):
    """A hash (uint64) of a word's bytes, 8 at a time; most words have 16 at most, which are hashed without a branch."""
    size = min(end - start, 16)
    value = _mix(np.uint64(end - start) * _FACTOR ^ (_read_8(data, start) & _FIRST[size]))
    value = _mix(value ^ (_read_8(data, start + 8) & _SECOND[size]))
    for place in range(start + 16, end, 8):
        value = _mix(value ^ (_read_8(data, place) & _FIRST[min(end - place, 8)]))
    return value


@_compile
def scan_texts(data, offsets, n, counts, hashes):
    """Finds the words of texts, and hashes their n-grams; returns how many of these there are.

    `data` (uint8) is the UTF-8 of all texts and ngrams.py's `PADDING`; `offsets` (int64) where each text starts, and
    the last one ends. Fills `counts` (int64) with each text's number of n-grams and, unless it is None, `hashes`
    (uint64). A hash is the sum of those of the words, each times the power of its place, so it rolls from one n-gram to
    the next (Karp and Rabin, 1987).
    """
    power = _ONE
    for _ in range(n - 1):
        power *= _BASE
    done = 0
    for text in range(len(counts)):
        start, end = offsets[text], offsets[text + 1]
        words, total = 0, np.uint64(0)
        for block in range(start, end + 1, 64):
            spaces = _find_space(data, block)
            if end - block < 64:  # the end is white space
                last = _ONE << np.uint64(end - block)
                spaces = (spaces & (last - _ONE)) | last
            while spaces:
                place = block + _lowest(spaces)
                spaces &= spaces - _ONE
                width = 1
                if data[place] != 0x20 and place < end:
                    width = _measure_space(data, place)
                    if not width:
                        continue
                if place > start:
                    if hashes is not None:
                        # The hash of a word stands where the n-gram that begins with it will.
                        hashes[done + words] = _hash_word(data, start, place)
                        total = total * _INVERSE + hashes[done + words] * power
                        if words >= n - 1:
                            gram = done + words - n + 1
                            hashes[gram], total = total, total - hashes[gram]
                    words += 1
                start = place + width
        counts[text] = max(0, words - n + 1)
        done += counts[text]
    return done


@_compile
def hash_texts(data, offsets, hashes):
    """Fills `hashes` (uint64) with those of whole texts, laid out as for `scan_texts`."""
    for text in range(len(hashes)):
        hashes[text] = _hash_word(data, offsets[text], offsets[text + 1])


@_compile
def order_records(hashes, counts, ordered_hashes, ordered_documents):
    """Fills the last two with records in the order of the first bits of their hashes.

    `counts` (int64) is the number of hashes of each document.
    """
    shift = np.uint64(64 - PREFIX_BITS)
    places = np.zeros((1 << PREFIX_BITS) + 1, np.uint32)
    for value in hashes:
        places[(value >> shift) + _ONE] += 1
    for prefix in range(1 << PREFIX_BITS):
        places[prefix + 1] += places[prefix]
    record = 0
    for document in range(len(counts)):
        for _ in range(counts[document]):
            prefix = hashes[record] >> shift
            place = np.int64(places[prefix])
            ordered_hashes[place], ordered_documents[place] = hashes[record], document
            places[prefix] += 1
            record += 1


@_compile
def find_copied(hashes, documents, starts, low, high):
    """The records whose hash another document has too: their hashes, by the first bits of which they are ordered, and
    their documents.

    Piece i of the records is [starts[i], starts[i + 1]), each piece in the order of `order_records`; all hashes are
    `low` or more and `high` or less. Those of a few prefixes at a time, of all pieces, are put into a table.
    """
    shift = np.uint64(64 - PREFIX_BITS)
    parts = (high >> shift) - (low >> shift) + _ONE
    while parts > _ONE and len(hashes) < np.int64(parts) * _TABLE_RECORDS and shift < np.uint64(63):
        parts, shift = parts + _ONE >> _ONE, shift + _ONE
    found = 0
    copied_hashes, copied_documents = np.empty_like(hashes), np.empty_like(documents)
    begins, ends = starts[:-1].copy(), starts[:-1].copy()
    room = 0
    for part in range(low >> shift, (high >> shift) + _ONE):
        records = 0
        for piece in range(len(begins)):
            place, end = ends[piece], starts[piece + 1]
            begins[piece] = place
            while place < end and hashes[place] >> shift == part:
                place += 1
            ends[piece] = place
            records += place - begins[piece]
        size = 1 << 10
        while size < 2 * records:
            size *= 2
        if size > room:
            room = size
            keys, holders, times = np.empty(room, np.uint64), np.empty(room, documents.dtype), np.empty(room, np.uint32)
        times[:size] = 0  # that the one document which holds a hash has it; `_MANY` where another one does too
        last = np.uint64(size - 1)
        for piece in range(len(begins)):
            for place in range(begins[piece], ends[piece]):
                key, document = hashes[place], documents[place]
                slot = key & last
                while times[slot] and keys[slot] != key:
                    slot = (slot + _ONE) & last
                if not times[slot]:
                    keys[slot], holders[slot], times[slot] = key, document, 1
                elif times[slot] != _MANY and holders[slot] == document:
                    times[slot] += np.uint32(1)
                else:
                    if times[slot] != _MANY:
                        for _ in range(times[slot]):
                            copied_hashes[found], copied_documents[found] = key, holders[slot]
                            found += 1
                        times[slot] = _MANY
                    copied_hashes[found], copied_documents[found] = key, document
                    found += 1
    return copied_hashes[:found], copied_documents[:found]
