package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync/atomic"
)

// The sums' format: see docs/checksums.md. A page of 4096 bytes is a header or
// has eight sectors; a sector of 512 bytes, which a device writes whole or not
// at all, has 63 entries and checks itself.
const (
	sumPage        = 4096
	sumSector      = 512
	sumEntries     = 63 // in a sector
	sumPerPage     = sumPage / sumSector * sumEntries
	sumVersion     = 1
	sumCheckAt     = sumEntries * 8
	sumHeaderBytes = 32
)

var sumMagic = [8]byte([]byte("uffdsums"))

// ErrNoSums: the sums store holds none, or is not one of sums.
var ErrNoSums = errors.New("store: no checksums there")

// SumsSize is how many bytes the sums of dataSize bytes take.
func SumsSize(dataSize int64) int64 {
	return sumPage + (blocks(dataSize)+sumPerPage-1)/sumPerPage*sumPage
}

// pageOf is the page of the sums that a block's entry is in.
func pageOf(block int64) int64 { return block / sumPerPage }

// compose writes a page of the sums to b. c.mu is held.
func (c *Checksummed) compose(b []byte, page int64) {
	clear(b[:sumPage])
	for s := range int64(sumPage / sumSector) {
		sector := b[s*sumSector : (s+1)*sumSector]
		first := page*sumPerPage + s*sumEntries
		any := uint64(0)
		for i := range min(int64(sumEntries), c.n.Load()-first) {
			e := atomic.LoadUint64(c.entry(first + i))
			if o := c.open[first+i]; o != nil {
				e = pair(uint32(e), o.old)
			}
			binary.LittleEndian.PutUint64(sector[i*8:], e)
			any |= e
		}
		if any != 0 {
			binary.LittleEndian.PutUint32(sector[sumCheckAt:], crc32.Checksum(sector[:sumCheckAt], castagnoli))
			binary.LittleEndian.PutUint32(sector[sumCheckAt+4:], uint32(page*8+s)+1)
		}
	}
}

// decode reads a page of the sums and says which of its sectors (bits) are
// damaged.
func (c *Checksummed) decode(b []byte, page int64) (damaged uint8) {
	for s := range int64(sumPage / sumSector) {
		sector := b[s*sumSector : (s+1)*sumSector]
		first := page*sumPerPage + s*sumEntries
		check, number := binary.LittleEndian.Uint32(sector[sumCheckAt:]), binary.LittleEndian.Uint32(sector[sumCheckAt+4:])
		blank := check == 0 && number == 0
		for _, x := range sector[:sumCheckAt] {
			blank = blank && x == 0
		}
		if blank {
			continue
		}
		if number != uint32(page*8+s)+1 || check != crc32.Checksum(sector[:sumCheckAt], castagnoli) {
			damaged |= 1 << s
			continue
		}
		for i := range min(int64(sumEntries), c.n.Load()-first) {
			if e := binary.LittleEndian.Uint64(sector[i*8:]); e != 0 {
				atomic.StoreUint64(c.entry(first+i), e)
			}
		}
	}
	return damaged
}

func header() []byte {
	b := make([]byte, sumPage)
	copy(b, sumMagic[:])
	binary.LittleEndian.PutUint32(b[8:], sumVersion)
	binary.LittleEndian.PutUint32(b[12:], SumBlock)
	binary.LittleEndian.PutUint32(b[16:], sumEntries)
	binary.LittleEndian.PutUint32(b[sumHeaderBytes-4:], crc32.Checksum(b[:sumHeaderBytes-4], castagnoli))
	return b
}

func checkHeader(b []byte) error {
	want := header()
	switch {
	case [8]byte(b[:8]) != sumMagic:
		return fmt.Errorf("%w; ChecksumOptions.Create makes them", ErrNoSums)
	case string(b[:sumHeaderBytes]) != string(want[:sumHeaderBytes]):
		return fmt.Errorf("%w: the header is damaged or of another version (%d)", ErrNoSums, binary.LittleEndian.Uint32(b[8:]))
	}
	return nil
}

// setUp reads, or makes, the sums.
func (c *Checksummed) setUp(o ChecksumOptions) error {
	size := c.data.Size()
	if bs := max(c.data.BlockSize(), c.sums.BlockSize()); bs > SumBlock {
		return fmt.Errorf("store: %s: blocks of %d bytes: %w", c, bs, ErrNotSupported)
	}
	var err error
	if err = c.scribe.open(); err != nil {
		return c.fail("engine", err)
	}
	if c.mem, err = reserve((blocks(size)*8 + sumPage) &^ (sumPage - 1)); err != nil {
		return c.fail(fmt.Sprintf("table for %d blocks", blocks(size)), err)
	}
	c.table = tableOf(c.mem)
	c.n.Store(blocks(size))
	b := c.scribe.buf[:sumPage]
	n, err := c.scribe.readSome(c.sums, b, 0)
	if err != nil {
		return c.fail("read the sums", err)
	}
	clear(b[n:])
	// Before anything is written: it may be the wrong file.
	switch err := checkHeader(b); {
	case err != nil && !o.Create:
		return c.fail("open", err)
	case err != nil && [8]byte(b[:8]) != sumMagic && !bytes.Equal(b, zeroBlock[:sumPage]):
		return c.fail("create the sums", invalid("%s has something else in it, and is left as it is", c.sums))
	}
	if want := SumsSize(size); c.sums.Size() < want {
		if !c.sums.Writable() {
			return c.fail("open", fmt.Errorf("%w: %d bytes of sums, want %d", ErrNoSums, c.sums.Size(), want))
		}
		if err := c.sums.Truncate(want); err != nil {
			return c.fail("grow the sums", err)
		}
	}
	if o.Create {
		return c.create()
	}
	return c.load()
}

// create makes sums of what the data holds.
func (c *Checksummed) create() error {
	size := c.data.Size()
	for off := int64(0); off < size; off += int64(len(c.scribe.buf)) {
		b := c.scribe.buf[:min(int64(len(c.scribe.buf)), blocks(size-off)*SumBlock)]
		n, err := c.scribe.readSome(c.data, b, off)
		if err == nil && off+int64(n) < size && n < len(b) {
			err = errShort
		}
		if err != nil {
			return c.fail("read the data", err)
		}
		b = b[:min(int64(n), size-off)]
		for i := 0; i < len(b); i += SumBlock {
			s := sumOf(b[i:min(i+SumBlock, len(b))])
			*c.entry((off + int64(i)) / SumBlock) = pair(s, s)
		}
	}
	// The header comes last: sums that are not all there have none.
	b := c.scribe.buf[:sumPage]
	clear(b)
	err := c.scribe.write(c.sums, b, 0)
	for page := int64(0); page < pageOf(blocks(size)+sumPerPage-1) && err == nil; page++ {
		c.compose(b, page)
		err = c.scribe.write(c.sums, b, sumPage+page*sumPage)
	}
	if err == nil {
		err = c.scribe.flush(c.sums)
	}
	if err == nil {
		copy(b, header())
		err = c.scribe.write(c.sums, b, 0)
	}
	if err == nil {
		err = c.scribe.flush(c.sums)
	}
	if err != nil {
		return c.fail("create the sums", err)
	}
	return nil
}

// load reads the sums and settles what a crash has left open.
func (c *Checksummed) load() error {
	n := c.n.Load()
	var unsettled []int64
	damaged := map[int64]bool{}
	pages := (n + sumPerPage - 1) / sumPerPage
	for page := int64(0); page < pages; {
		k := min(int64(len(c.scribe.buf)/sumPage), pages-page)
		b := c.scribe.buf[:k*sumPage]
		if err := c.scribe.read(c.sums, b, sumPage+page*sumPage); err != nil {
			return c.fail("read the sums", err)
		}
		for i := range k {
			bad := c.decode(b[i*sumPage:], page+i)
			for s := range int64(8) {
				if bad>>s&1 != 0 {
					first := (page+i)*sumPerPage + s*sumEntries
					for block := first; block < min(first+sumEntries, n); block++ {
						damaged[block] = true
					}
				}
			}
		}
		page += k
	}
	for block := range n {
		if e := c.table[block]; damaged[block] || uint32(e) != uint32(e>>32) {
			unsettled = append(unsettled, block)
		}
	}
	if len(unsettled) == 0 {
		return nil
	}
	// What is read here may be in a cache of the device that a second loss of
	// power empties: it must be durable before the other sum is given up.
	if c.data.Writable() {
		if err := c.scribe.flush(c.data); err != nil {
			return c.fail("flush", err)
		}
	}
	size := c.data.Size()
	b := c.scribe.buf[:SumBlock]
	for _, block := range unsettled {
		got, err := c.scribe.readSome(c.data, b, block*SumBlock)
		if err != nil {
			continue // either will do, once it can be read
		}
		s := sumOf(b[:min(int64(got), size-block*SumBlock)])
		e := c.table[block]
		switch {
		case damaged[block]:
			c.table[block] = pair(^s, ^s)
			c.torn[block] = fmt.Errorf("the sums are damaged there: %w", ErrChecksum)
		case fits(e, s):
			c.table[block] = pair(s, s)
			c.stale[pageOf(block)] = struct{}{}
		default:
			// It stays open, so that the next one to look sees the same.
			c.table[block] = pair(uint32(e), uint32(e))
			c.torn[block] = ErrTorn
			c.open[block] = &openBlock{old: uint32(e >> 32), state: blockFailed}
		}
	}
	return nil
}
