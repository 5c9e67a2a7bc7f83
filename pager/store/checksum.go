package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// SumBlock is the unit of Checksummed, in bytes.
const SumBlock = 4096

// ErrChecksum: a block is not what its checksum says. It wraps EBADMSG.
var ErrChecksum error = &sumError{"checksum mismatch", syscall.EBADMSG}

// ErrTorn: a block is neither what it was before nor what it was to become
// when a write of it, which nobody had been told was done, was cut short by a
// crash. It wraps ErrChecksum.
var ErrTorn error = &sumError{"torn by a crash while it was being written", ErrChecksum}

type sumError struct {
	msg   string
	cause error
}

func (e *sumError) Error() string { return "store: " + e.msg }
func (e *sumError) Unwrap() error { return e.cause }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ZeroSum is the CRC-32C of a block of zeros. Sums are kept XORed with it, so
// that what was never written costs no memory and no room.
var ZeroSum = crc32.Checksum(make([]byte, SumBlock), castagnoli)

// ChecksumOptions configure NewChecksummed.
type ChecksumOptions struct {
	// Create makes new sums for what the data holds now, reading all of it.
	// Without it, a sums store that holds none is an error (ErrNoSums); with it, one
	// that holds something else is.
	Create bool
}

// Checksummed is a Store over another one that keeps a CRC-32C of every block of
// 4096 bytes in a second store, and checks every block that is read. A block
// that is wrong is an error (ErrChecksum, ErrTorn) to who reads it, and right
// again once it has been written whole. Nothing of it needs Go code to read: see
// Kernel.Sums.
//
// Sums are written, and flushed, before the blocks they are for: after a crash
// both the old and the new contents of a block are known, and either is good.
// That costs one more write and flush for each batch of writes; docs/checksums.md
// has the format, the argument and the price.
type Checksummed struct {
	data, sums Store
	mem        []byte       // the table's memory
	table      []uint64     // see Kernel.Sums; all that has been reserved
	n          atomic.Int64 // of these, blocks there may be now

	mu      sync.Mutex
	wake    *sync.Cond
	queue   []sumWrite
	calls   []*sumCall
	open    map[int64]*openBlock // written since the last flush of data
	stale   map[int64]struct{}   // pages of sums to be written when there is time
	torn    map[int64]error      // blocks that were found wrong when the store was opened, and why
	err     error                // sticky: a flush failed
	closing bool
	seq     uint64
	done    chan struct{}

	scribe scribe
}

// openBlock is a block whose old contents a loss of power may bring back.
type openBlock struct {
	old   uint32 // its sum before, as in the table
	state openBlockState
	seq   uint64
}

type openBlockState uint8

const (
	blockInFlight openBlockState = iota
	blockWritten
	blockFailed // the write failed: nobody knows what is there
)

// NewChecksummed opens data with its sums; it owns both, also on error. When
// the last use was cut short by a crash it reads, and settles, the blocks that
// were being written then. The sums need SumsSize bytes; a writable store of
// them is made as long as that. It keeps 8 bytes of memory for each block that
// is not all zeros.
//
// Discard, and Truncate to less, wait for a flush.
func NewChecksummed(data, sums Store, o ChecksumOptions) (*Checksummed, error) {
	if data == nil || sums == nil || reflect.ValueOf(data).Comparable() && reflect.ValueOf(sums).Comparable() && data == sums {
		err := invalid("NewChecksummed needs two stores, one for the data and one for its sums")
		for _, s := range []Store{data, sums} {
			if s != nil {
				return nil, errors.Join(err, s.Close())
			}
		}
		return nil, err
	}
	c := &Checksummed{
		data: data, sums: sums,
		open: map[int64]*openBlock{}, stale: map[int64]struct{}{}, torn: map[int64]error{},
		done: make(chan struct{}),
	}
	c.wake = sync.NewCond(&c.mu)
	err := c.setUp(o)
	if err != nil {
		err = errors.Join(err, c.scribe.close(), data.Close(), sums.Close())
		if c.mem != nil {
			err = errors.Join(err, unreserve(c.mem))
		}
		return nil, err
	}
	go c.write()
	return c, nil
}

func (c *Checksummed) fail(what string, err error) error {
	return fmt.Errorf("store: %s: %s: %w", c, what, err)
}

// Size implements Store.
func (c *Checksummed) Size() int64 { return c.data.Size() }

// BlockSize implements Store.
func (c *Checksummed) BlockSize() int { return SumBlock }

// Writable implements Store.
func (c *Checksummed) Writable() bool { return c.data.Writable() && c.sums.Writable() }

// String implements Store.
func (c *Checksummed) String() string { return "checksummed " + c.data.String() }

// Kernel implements Store: it is that of the data, with Sums.
func (c *Checksummed) Kernel() (Kernel, bool) {
	k, ok := c.data.Kernel()
	if !ok || !memoryIsStable {
		return Kernel{FD: -1}, false
	}
	k.Sums = c.table
	return k, true
}

// blocks is how many blocks size bytes have.
func blocks(size int64) int64 { return (size + SumBlock - 1) / SumBlock }

// sumOf is the table's form of the sum of a block's first bytes, the rest
// being zeros.
func sumOf(b []byte) uint32 {
	s := crc32.Update(0, castagnoli, b)
	if len(b) < SumBlock {
		s = crc32.Update(s, castagnoli, zeroBlock[len(b):])
	}
	return s ^ ZeroSum
}

var zeroBlock [SumBlock]byte

// entry is a block's place in the table.
func (c *Checksummed) entry(block int64) *uint64 { return &c.table[block] }

func pair(now, other uint32) uint64 { return uint64(other)<<32 | uint64(now) }

// Start implements Store.
func (c *Checksummed) Start(e aio.Engine, ops []*aio.Op) {
	var below []*aio.Op
	var writes []sumWrite
	for _, op := range ops {
		switch {
		case op.Code == aio.Read && (op.Off|int64(len(op.Buf)))&(SumBlock-1) != 0:
			finish(op, 0, invalid("%d bytes at %d of %s", len(op.Buf), op.Off, c))
		case op.Code == aio.Read:
			r := &sumRead{whole: op, c: c, e: e}
			r.Op = aio.Op{Code: aio.Read, Off: op.Off, Buf: op.Buf, Done: sumReadDone, Arg: r}
			below = append(below, &r.Op)
		case !c.Writable():
			finish(op, 0, ErrReadOnly)
		case op.Code == aio.Write:
			if (op.Off|int64(len(op.Buf)))&(SumBlock-1) != 0 || op.Off < 0 {
				finish(op, 0, invalid("%d bytes at %d of %s", len(op.Buf), op.Off, c))
				continue
			}
			writes = append(writes, sumWrite{op: op, e: e})
		default:
			c.startFlush(e, op)
		}
	}
	if len(writes) > 0 {
		c.enqueue(writes)
	}
	if len(below) > 0 {
		c.data.Start(e, below)
	}
}

// sumRead is a read on its way.
type sumRead struct {
	aio.Op
	whole *aio.Op
	c     *Checksummed
	e     aio.Engine
	tries int
}

// sumTries is how often a read with a wrong sum is repeated: the block may have
// been changed by a Discard while it was read.
const sumTries = 3

func sumReadDone(op *aio.Op) {
	r := op.Arg.(*sumRead)
	err := op.Err
	if err == nil {
		if err = r.c.check(op.Buf[:op.N], op.Off); err != nil && r.tries < sumTries {
			r.tries++
			r.Op = aio.Op{Code: aio.Read, Off: op.Off, Buf: op.Buf, Done: sumReadDone, Arg: r}
			r.c.data.Start(r.e, []*aio.Op{&r.Op})
			return
		}
	}
	finish(r.whole, op.N, err)
}

// check compares what was read at off with the sums. A block that was not read
// to its end is left to who finds the store too short.
func (c *Checksummed) check(b []byte, off int64) error {
	size := c.data.Size()
	for ; len(b) > 0; off += SumBlock {
		n := min(len(b), SumBlock)
		if n < SumBlock && off+int64(n) < size {
			return nil
		}
		block := off / SumBlock
		if e := atomic.LoadUint64(c.entry(block)); !fits(e, sumOf(b[:n])) {
			return c.wrong(block)
		}
		b = b[n:]
	}
	return nil
}

// fits: a block may have this sum.
func fits(entry uint64, sum uint32) bool {
	return sum == uint32(entry) || sum == uint32(entry>>32)
}

// wrong is the error of a block.
func (c *Checksummed) wrong(block int64) error {
	c.mu.Lock()
	err := c.torn[block]
	c.mu.Unlock()
	if err == nil {
		err = ErrChecksum
	}
	return fmt.Errorf("store: block at %d of %s: %w", block*SumBlock, c.data, err)
}

// Wrong lists, by offset, the blocks that were found wrong when the store was
// opened and have not been written since: torn by the crash, or of unknown sum
// because the sums are damaged.
func (c *Checksummed) Wrong() []int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var l []int64
	for b := range c.torn {
		l = append(l, b*SumBlock)
	}
	return l
}

// Close implements Store. It settles what can be settled, so that the next
// open need not.
func (c *Checksummed) Close() error {
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		<-c.done
		return nil
	}
	c.closing = true
	c.wake.Signal()
	c.mu.Unlock()
	<-c.done
	err := errors.Join(c.scribe.last, c.scribe.close(), c.data.Close(), c.sums.Close())
	return errors.Join(err, unreserve(c.mem))
}

// tableOf makes a table of memory.
func tableOf(mem []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
}
