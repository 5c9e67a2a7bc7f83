//go:build !uffdpager_nointernals

package coro

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"github.com/uffdpager/uffdpager/coro/bare"
)

// selfTestMode is the mode of the self-test's arena, which parks although
// parking is not on yet, and into a queue of its own.
const selfTestMode Mode = 0xff

var (
	parkOnce sync.Once
	parkWhy  error
)

// ParkStatus says whether goroutines are parked in place in this process, and
// if not, why. The first call (or the first AddArena) finds out: it checks the
// Go release and the runtime's code and runs a self-test, which takes some
// milliseconds and a garbage collection.
func ParkStatus() (active bool, why string) {
	parkOnce.Do(func() {
		if parkWhy = startParking(); parkWhy == nil {
			bare.Store32(&parkOn, 1)
		}
	})
	if parkWhy != nil {
		return false, parkWhy.Error()
	}
	return true, ""
}

func startParking() error {
	if err := Install(); err != nil {
		return err
	}
	switch mode, err := Auto.Effective(); {
	case err != nil:
		return err
	case mode == Block || mode == Restart:
		return fmt.Errorf("switched off by UFFDPAGER_PARK=%v", mode)
	}
	if err := resolve(); err != nil {
		return err
	}
	wait, raise := parkPCs()
	waitPC, raiseLo, raiseHi = wait, raise, funcEnd(raise)
	// What gopark needs below the frame is mostly its write barrier.
	stackNeed = 640 + fakeExtra
	if err := resolveXState(); err != nil {
		return err
	}
	var old sigaction
	if _, errno := bare.Syscall(syscall.SYS_RT_SIGACTION, sigurg, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0); errno != 0 {
		return fmt.Errorf("rt_sigaction: %w", syscall.Errno(errno))
	}
	f := runtime.FuncForPC(old.handler)
	if old.handler <= 1 || f == nil || f.Name() != "runtime.sigtramp" && f.Name() != "runtime.cgoSigtramp" {
		return errors.New("the handler of SIGURG is not Go's")
	}
	urgHandler = old.handler
	return selfTest()
}

// resolveXState reads from the processor where the vector state lies in the
// kernel's image. See the Intel SDM, volume 1, 13.4.3.
func resolveXState() error {
	if _, _, c, _ := cpuid(1, 0); c&(1<<27) == 0 { // OSXSAVE
		return errors.New("the processor has no XSAVE")
	}
	if _, off, _, _ := cpuid(0xd, 2); off != xLegacy+64 {
		return fmt.Errorf("the AVX state is at %d in the XSAVE image", off)
	}
	slotClasses[0].size = roundUp(slotHeader+xAVXEnd+negativeRoom, 64)
	zmmOffset = 0
	size6, off6, _, _ := cpuid(0xd, 6)
	size7, off7, _, _ := cpuid(0xd, 7)
	_, off5, _, _ := cpuid(0xd, 5)
	if size6 == 512 && size7 == 1024 && off7 == off6+512 && off5 < off6 && off6 >= xAVXEnd {
		zmmOffset = uintptr(off6)
		slotClasses[1].size = roundUp(slotHeader+zmmOffset+1536+512+negativeRoom, 64)
	}
	return nil
}

func roundUp(n, to uintptr) uintptr { return (n + to - 1) / to * to }

func cpuid(leaf, sub uint32) (a, b, c, d uint32)

// The self-test's pages are those of a file without a size: a load is SIGBUS
// until the file has grown, and no privilege is needed.
const (
	testPage  = 4096
	testPages = 4
)

//go:nosplit
//go:norace
//go:nocheckptr
func decideSelfTest(f *Fault) Verdict { return Wait }

// selfTest parks goroutines of its own, in each way that matters, and looks at
// what they find afterwards. A step that cannot be parked is delivered as a
// fault, since the arena has no Serve, and so becomes the error.
func selfTest() error {
	fd, err := memfd()
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	file := os.NewFile(uintptr(fd), "self-test")
	defer file.Close()
	mem, err := syscall.Mmap(fd, 0, testPages*testPage, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("self-test: mmap: %w", err)
	}
	// The mapping stays for ever, since arenas do; without pages it costs nothing.
	lo := uintptr(unsafe.Pointer(&mem[0]))
	if err := addArena(arena{lo: lo, hi: lo + testPages*testPage, decide: decideSelfTest, mode: selfTestMode}); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	data := make([]byte, testPages*testPage)
	for i := range data {
		data[i] = byte(i*7 + i>>8)
	}
	t := &parkTest{file: file, data: data}
	done := make(chan struct{})
	go t.serve(done)
	for _, step := range []struct {
		name string
		run  func(mem, data []byte) error
	}{
		{"plain load", testPlainLoad},
		{"copy", testCopy},
		{"collection while parked", testRegisters},
		{"stack growth after resume", testGrowth},
	} {
		if err = t.step(step.name, func() error { return step.run(mem, data) }); err != nil {
			break
		}
		if safePC == 0 {
			safePC = lastGoPC // the plain load's own, which the runtime has just accepted
		}
	}
	if err == nil {
		err = t.failing(mem)
	}
	queues[selfQueue].wakeUp()
	<-done
	if err == nil && t.err != nil {
		err = fmt.Errorf("self-test: %w", t.err)
	}
	file.Truncate(0)
	return err
}

func memfd() (int, error) {
	const sysMemfdCreate = 319
	name := []byte("uffdpager-self-test\x00")
	fd, errno := bare.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), 1, 0, 0, 0, 0) // MFD_CLOEXEC
	if errno != 0 {
		return -1, fmt.Errorf("memfd_create: %w", syscall.Errno(errno))
	}
	return int(fd), nil
}

type parkTest struct {
	file *os.File
	data []byte
	fail atomic.Uintptr // errno for the next Resume
	err  error
}

// serve looks after parked goroutines: it collects garbage, makes the pages
// appear and resumes.
func (t *parkTest) serve(done chan<- struct{}) {
	defer close(done)
	for {
		ps := queues[selfQueue].nextParked(nil)
		if len(ps) == 0 {
			return
		}
		runtime.GC()
		if t.fail.Load() == 0 {
			if _, err := t.file.WriteAt(t.data, 0); err != nil {
				t.err = err
				t.fail.Store(uintptr(syscall.EIO))
			}
		}
		for _, p := range ps {
			p.Resume(t.fail.Load())
		}
	}
}

// step runs one test on a goroutine of its own, with all pages missing.
func (t *parkTest) step(name string, run func() error) error {
	if err := t.file.Truncate(0); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	parked := bare.Load64(&counters.parked)
	result := make(chan error)
	go func() {
		debug.SetPanicOnFault(true)
		defer func() {
			switch r := recover().(type) {
			case nil:
			case interface{ Addr() uintptr }:
				if errno, ok := DeliveredAt(r.Addr()); ok && errno == ErrnoCannotPark {
					result <- errors.New("the runtime does not stop goroutines (GODEBUG asyncpreemptoff or gccheckmark?)")
				} else {
					result <- fmt.Errorf("fault at %#x", r.Addr())
				}
			default:
				result <- fmt.Errorf("%v", r)
			}
		}()
		result <- run()
	}()
	if err := <-result; err != nil {
		return fmt.Errorf("self-test: %s: %w", name, err)
	}
	if bare.Load64(&counters.parked) == parked {
		return fmt.Errorf("self-test: %s: it was not parked", name)
	}
	return nil
}

// failing lets a load fail after it was parked: it must be a fault with its
// address.
func (t *parkTest) failing(mem []byte) error {
	t.fail.Store(uintptr(syscall.EIO))
	want := uintptr(unsafe.Pointer(&mem[testPage+9]))
	err := t.step("failing load", func() (err error) {
		defer func() {
			a, ok := recover().(interface{ Addr() uintptr })
			if !ok || a.Addr() != want {
				err = errors.New("not delivered with its address")
			}
		}()
		loadByte(&mem[testPage+9])
		return nil
	})
	if errno, ok := DeliveredAt(want); err == nil && (!ok || errno != uintptr(syscall.EIO)) {
		err = fmt.Errorf("self-test: failing load: not parked (GODEBUG asyncpreemptoff?)")
	}
	return err
}

//go:noinline
func loadByte(p *byte) byte { return *p }

func testPlainLoad(mem, data []byte) error {
	if loadByte(&mem[5]) != data[5] {
		return errors.New("wrong value")
	}
	return nil
}

func testCopy(mem, data []byte) error {
	b := make([]byte, 3*testPage)
	if n := copy(b, mem[100:]); n != len(b) || !bytes.Equal(b, data[100:100+n]) {
		return errors.New("wrong bytes")
	}
	return nil
}

// cell is a heap object that registerLoad has only in a register.
type cell struct {
	next *cell
	v    [6]uint64
}

//go:noinline
func newCells() *cell {
	return &cell{next: &cell{v: [6]uint64{3: 4711}}, v: [6]uint64{3: 17}}
}

//go:noinline
func registerLoad(c *cell, p *byte, a, b, d float64) (uint64, float64) {
	x, y := a*b+d, a*d-b
	v := uint64(*p)
	return v + c.v[3] + c.next.v[3], x + y
}

func testRegisters(mem, data []byte) error {
	v, f := registerLoad(newCells(), &mem[2*testPage+1], 1.5, 2.5, 3.5)
	garbage := make([]*cell, 64)
	for i := range garbage {
		garbage[i] = &cell{v: [6]uint64{3: 1}}
	}
	runtime.KeepAlive(garbage)
	if v != uint64(data[2*testPage+1])+17+4711 || f != 1.5*2.5+3.5+1.5*3.5-2.5 {
		return fmt.Errorf("registers were lost: %d, %v", v, f)
	}
	return nil
}

func testGrowth(mem, data []byte) error {
	if got, want := deepLoad(200, &mem[3*testPage]), uint64(data[3*testPage])+200*200; got != want {
		return fmt.Errorf("%d, want %d", got, want)
	}
	return nil
}

// deepLoad faults at the bottom of one recursion and goes into another, so
// that the stack, whose frame above the fault was scanned conservatively, is
// copied right after.
//
//go:noinline
func deepLoad(n uint64, p *byte) uint64 {
	v := uint64(loadByte(p))
	return v + deepSum(n)*n
}

//go:noinline
func deepSum(n uint64) uint64 {
	var pad [64]uint64
	pad[n%64] = 1
	if n == 0 {
		return 0
	}
	return deepSum(n-1) + pad[n%64]
}
