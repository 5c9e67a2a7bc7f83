//go:build linux

package pager

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// sharedEventfd is our duplicate of a caller's eventfd. All operations that
// signal the same eventfd share one, so that a hundred thousand of them do not
// take a hundred thousand descriptors.
type sharedEventfd struct {
	id   int // the kernel's eventfd-id, -1 if it does not tell
	fd   int
	refs int
}

var eventfds struct {
	mu   sync.Mutex
	byID map[int]*sharedEventfd
}

// shareEventfd duplicates efd, which must be an eventfd. Errors: EBADF,
// EINVAL, EMFILE.
func shareEventfd(efd int) (*sharedEventfd, error) {
	if efd < 0 {
		return nil, fmt.Errorf("pager: eventfd %d: %w", efd, unix.EBADF)
	}
	id, err := eventfdID(efd)
	if err != nil {
		return nil, err
	}
	eventfds.mu.Lock()
	defer eventfds.mu.Unlock()
	if e := eventfds.byID[id]; e != nil && id >= 0 {
		e.refs++
		return e, nil
	}
	fd, err := unix.FcntlInt(uintptr(efd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pager: eventfd %d: %w", efd, err)
	}
	e := &sharedEventfd{id: id, fd: fd, refs: 1}
	if id >= 0 {
		if eventfds.byID == nil {
			eventfds.byID = map[int]*sharedEventfd{}
		}
		eventfds.byID[id] = e
	}
	return e, nil
}

// eventfdID is the kernel's number of an eventfd (fdinfo, Linux 5.2), -1 where
// it is not told; an error if efd is something else.
func eventfdID(efd int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", efd))
	if err != nil {
		if _, ferr := unix.FcntlInt(uintptr(efd), unix.F_GETFD, 0); ferr != nil {
			return 0, fmt.Errorf("pager: eventfd %d: %w", efd, ferr)
		}
		return -1, nil // no /proc: take the caller's word
	}
	if !bytes.Contains(b, []byte("eventfd-count:")) {
		return 0, fmt.Errorf("pager: descriptor %d is not an eventfd: %w", efd, unix.EINVAL)
	}
	if _, s, ok := bytes.Cut(b, []byte("eventfd-id:")); ok {
		s, _, _ = bytes.Cut(s, []byte("\n"))
		if id, err := strconv.Atoi(string(bytes.TrimSpace(s))); err == nil {
			return id, nil
		}
	}
	return -1, nil
}

func (e *sharedEventfd) signal() {
	if e != nil {
		eventfdSignal(int32(e.fd))
	}
}

func (e *sharedEventfd) release() {
	if e == nil {
		return
	}
	eventfds.mu.Lock()
	defer eventfds.mu.Unlock()
	if e.refs--; e.refs == 0 {
		if e.id >= 0 {
			delete(eventfds.byID, e.id)
		}
		unix.Close(e.fd)
	}
}
