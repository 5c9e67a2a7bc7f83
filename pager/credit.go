//go:build linux

package pager

import (
	"sync/atomic"
	"unsafe"
)

// Pin credits
//
// A page that is pinned or dirty cannot leave, so at most Pinnable frames may
// be in that state: the rest of the budget stays free for reads. A page that is
// pinned or dirty, or both, costs one credit per frame, and may keep it when it
// is neither any more (kept.go). Pins, state and that are in
// the same word, so whoever changes it knows from the old and the new value
// whether he has to bring a credit or may take one home. A
// global counter would be written by every Acquire that hits, on all cores:
// instead credits lie in shards, and the global stock is touched only when a
// shard runs out or over. The sum is exact at all times, so it does not matter
// which shard a credit comes from and goes to: it is the caller's, found by his
// stack, which stays in the cache of his core. (Chosen by page, the shards go
// from core to core although the pages are distinct.)
const creditShards = 64

type creditShard struct {
	stock atomic.Int64
	_     [56]byte
}

type credits struct {
	w      *pagerWords
	global *atomic.Int64 // may be negative while the limit shrinks
	batch  atomic.Int64  // a shard holds at most about twice this
	low    atomic.Int64  // a global stock of less is refilled from what pages keep …
	high   atomic.Int64  // … up to this
	shard  [creditShards]creditShard
}

// setLimit changes the number of credits in the world by delta.
func (c *credits) setLimit(limit, delta int64) {
	c.batch.Store(min(limit/(creditShards*8), 32))
	c.low.Store(limit / 32)
	c.high.Store(limit / 16)
	c.gather()
	c.global.Add(delta)
}

// gather moves all stocks to the global one.
func (c *credits) gather() {
	for i := range c.shard {
		if s := &c.shard[i].stock; s.Load() > 0 {
			c.global.Add(s.Swap(0))
		}
	}
}

// here is the caller's shard.
func (c *credits) here() *atomic.Int64 {
	var mark byte
	return &c.shard[uint64(uintptr(unsafe.Pointer(&mark)))>>11*0x9E3779B97F4A7C15>>58].stock
}

var _ = [1]struct{}{}[creditShards-1<<6]

// take takes n credits, or none and says false.
func (c *credits) take(n int64) bool {
	s := c.here()
	for {
		v := s.Load()
		if v < n {
			break
		}
		if s.CompareAndSwap(v, v-n) {
			return true
		}
	}
	if more := c.batch.Load(); c.takeGlobal(n + more) {
		s.Add(more)
		c.refill()
		return true
	}
	if c.takeGlobal(n) {
		c.refill()
		return true
	}
	c.gather()
	if c.takeGlobal(n) {
		return true
	}
	if load64(&c.w.kept) > 0 {
		reclaim(c.w, n, keptMost)
		if c.takeGlobal(n) {
			return true
		}
	}
	c.recall()
	return c.takeGlobal(n)
}

func (c *credits) takeGlobal(n int64) bool {
	for {
		v := c.global.Load()
		if v < n {
			return false
		}
		if c.global.CompareAndSwap(v, v-n) {
			return true
		}
	}
}

// give returns n credits. somebody says that somebody waits for them: then
// they go where he looks.
func (c *credits) give(n int64, somebody bool) {
	if somebody || c.w.tight() {
		c.global.Add(n)
		return
	}
	s := c.here()
	if v := s.Add(n); v > 2*c.batch.Load() {
		if v = s.Swap(0); v > 0 {
			c.global.Add(v)
		}
	}
}

// left is the number of credits nobody has; a snapshot.
func (c *credits) left() int64 {
	n := c.global.Load()
	for i := range c.shard {
		n += c.shard[i].stock.Load()
	}
	return n
}
