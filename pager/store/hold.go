package store

import (
	"container/heap"
	"time"

	"github.com/uffdpager/uffdpager/pager/aio"
)

// gate keeps ops of some kinds until they are let go. The lock is Faulty's.
type gate struct {
	shut    bool
	ops     Ops
	waiting []*flight // oldest first
}

// keep takes fl if the gate is shut for it.
func (g *gate) keep(fl *flight) bool {
	if !g.shut || !g.ops.has(fl.ops) {
		return false
	}
	g.waiting = append(g.waiting, fl)
	return true
}

// take removes those that want says, at most n (negative: all).
func (g *gate) take(n int, want func(*flight) bool) []*flight {
	var out, stay []*flight
	for _, fl := range g.waiting {
		if n != 0 && want(fl) {
			out = append(out, fl)
			n--
		} else {
			stay = append(stay, fl)
		}
	}
	g.waiting = stay
	return out
}

// Hold keeps transfers of these kinds (0: all), from now on, before their data
// moves, until Step or Release lets them go.
func (f *Faulty) Hold(ops Ops) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before.shut, f.before.ops = true, ops
}

// HoldDone is Hold after the data has moved: what was read is in the buffer and
// what was written is in the store, but nobody has been told.
func (f *Faulty) HoldDone(ops Ops) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.after.shut, f.after.ops = true, ops
}

// Step lets the n oldest of the held transfers go (negative: all held now), at
// HoldDone before at Hold, while the hold goes on for others; one that moves
// its data meets HoldDone next. It says how many went. Their Done may run before Step returns.
func (f *Faulty) Step(n int) int {
	return f.step(n, func(*flight) bool { return true })
}

// StepOp is Step(-1) for the transfers that match says. match runs under the
// store's lock and must not call it.
func (f *Faulty) StepOp(match func(code aio.Code, off int64, n int) bool) int {
	return f.step(-1, func(fl *flight) bool { return match(fl.op.Code, fl.op.Off, len(fl.op.Buf)) })
}

func (f *Faulty) step(n int, want func(*flight) bool) int {
	f.mu.Lock()
	done := f.after.take(n, want)
	if n > 0 {
		n -= len(done)
	}
	ready := f.before.take(n, want)
	f.moving += len(ready)
	f.mu.Unlock()
	f.done(done)
	f.move(ready)
	return len(done) + len(ready)
}

// Release ends Hold and HoldDone and lets everything go.
func (f *Faulty) Release() {
	f.mu.Lock()
	f.before.shut, f.after.shut = false, false
	f.mu.Unlock()
	f.Step(-1)
}

// delayed is a queue of ops by due time with one timer for all of them: ten
// thousand slow ops are ten thousand entries, not goroutines. The lock is
// Faulty's.
type delayed struct {
	queue flights
	timer *time.Timer
	armed time.Time // when the timer fires; zero: it does not
}

func (d *delayed) push(fl *flight, wake func()) {
	heap.Push(&d.queue, fl)
	if d.timer == nil {
		d.timer = time.AfterFunc(time.Hour, wake)
		d.timer.Stop()
	}
	d.arm()
}

// arm sets the timer to the earliest op.
func (d *delayed) arm() {
	if len(d.queue) == 0 {
		d.armed = time.Time{}
		return
	}
	if first := d.queue[0].due; d.armed.IsZero() || first.Before(d.armed) {
		d.armed = first
		d.timer.Reset(time.Until(first))
	}
}

// due removes what has come due by now, in order.
func (d *delayed) due(now time.Time) []*flight {
	var out []*flight
	for len(d.queue) > 0 && !d.queue[0].due.After(now) {
		out = append(out, heap.Pop(&d.queue).(*flight))
	}
	d.armed = time.Time{} // it has fired
	d.arm()
	return out
}

func (d *delayed) stop() {
	if d.timer != nil {
		d.timer.Stop()
	}
}

// flights is a heap.Interface by due time and order of Start.
type flights []*flight

func (q flights) Len() int      { return len(q) }
func (q flights) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q flights) Less(i, j int) bool {
	if q[i].due.Equal(q[j].due) {
		return q[i].seq < q[j].seq
	}
	return q[i].due.Before(q[j].due)
}
func (q *flights) Push(x any) { *q = append(*q, x.(*flight)) }
func (q *flights) Pop() any {
	old := *q
	last := len(old) - 1
	fl := old[last]
	old[last] = nil
	*q = old[:last]
	return fl
}
