package coro

import (
	"context"
	"sync"
)

// Await parks the calling goroutine until the counter of the eventfd efd is
// not zero, takes the counter and returns it (eventfd(2): the sum of what was
// written since it was last taken, or 1 with EFD_SEMAPHORE). It returns at once
// if the counter is not zero already.
//
// Only the goroutine waits: no thread, and no goroutine per call. All waits of
// the process share one epoll instance, which stays open, and one goroutine,
// which is there only while somebody waits. The eventfd may be blocking or
// not; its flags are not changed, it is neither duplicated nor closed.
//
// Several goroutines may wait for one eventfd: each signal wakes one of them,
// the one that has waited longest (each unit of the counter one, with
// EFD_SEMAPHORE). A caller that finds the counter not zero takes it without
// looking whether others wait.
//
// When ctx ends, Await returns ctx.Err() and has taken nothing; when signal and
// end come together, a counter that was taken is returned with a nil error.
//
// The error unwraps to a [syscall.Errno]: EBADF if efd is not open, EINVAL if
// it is not an eventfd, EMFILE if there is no descriptor left for the first
// call in the process, ENOSPC if fs.epoll.max_user_watches is used up. Closing
// efd while Await waits for it is a mistake, as it is with epoll(7): the wait
// ends with EBADF at the next signal, if somebody holds a duplicate to signal,
// or at the next Await on the same number; otherwise with ctx. Nothing is ever
// read from another file that got the number meanwhile.
//
// In a coroutine of a [Loop] Await stops the whole loop: use [Task.Await] there.
// Await must not be called in a testing/synctest bubble. Off Linux it returns
// [ErrNotSupported].
func Await(ctx context.Context, efd int) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	value, ok, err := tryEventfd(efd)
	if err != nil {
		return 0, efdError(efd, err)
	}
	if ok {
		return value, nil
	}
	w := &efdWaiter{done: make(chan struct{}, 1)}
	if err := awaits.add(w, int32(efd)); err != nil {
		return 0, efdError(efd, err)
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		if awaits.cancel(w) {
			return 0, ctx.Err()
		}
		<-w.done
	}
	return w.value, w.err
}

// awaits holds every Await that waits.
var awaits awaiter

// awaiter is an efdSet under a lock and the goroutine that serves it.
type awaiter struct {
	mu      sync.Mutex
	set     *efdSet // made by the first wait, then kept
	reaping bool    // reap is running
}

func (a *awaiter) add(w *efdWaiter, fd int32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil {
		p, err := openEfdPoller()
		if err != nil {
			return err
		}
		a.set = newEfdSet(p, func(w *efdWaiter) { w.done <- struct{}{} })
	}
	if err := a.set.add(w, fd); err != nil {
		return err
	}
	if !a.reaping {
		a.reaping = true
		go a.reap()
	}
	return nil
}

func (a *awaiter) cancel(w *efdWaiter) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.set.cancel(w) {
		return false
	}
	if len(a.set.sources) == 0 {
		a.set.poller.wake() // lets reap go
	}
	return true
}

// reap answers waits until there is none. It is the only caller of the
// poller's wait: the next one starts under the lock that this one left under.
func (a *awaiter) reap() {
	var ready [efdBatch]int32
	for {
		n, err := a.set.poller.wait(ready[:])
		a.mu.Lock()
		if err != nil {
			a.set.failAll(err)
		}
		for _, fd := range ready[:n] {
			a.set.dispatch(fd)
		}
		if len(a.set.sources) == 0 {
			a.reaping = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
	}
}
