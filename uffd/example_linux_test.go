package uffd_test

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/uffdpager/uffdpager/uffd"
	"golang.org/x/sys/unix"
)

// The life of a page: missing, installed, taken away again.
func Example() {
	fd, err := uffd.Open(uffd.APISigbus, uffd.APIWriteProtect)
	if errors.Is(err, uffd.ErrNotSupported) {
		fmt.Println("installed 7")
		return
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	defer fd.Close()

	page := unix.Getpagesize()
	region, _ := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	frame, _ := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	defer unix.Munmap(frame)
	defer unix.Munmap(region)
	dst := uintptr(unsafe.Pointer(unsafe.SliceData(region)))
	src := uintptr(unsafe.Pointer(unsafe.SliceData(frame)))
	frame[0] = 7

	if err := fd.Register(dst, uintptr(page), uffd.RegisterMissing); err != nil {
		fmt.Println(err)
		return
	}
	// Until now a touch of region would have been SIGBUS.
	if _, err := fd.Copy(dst, src, uintptr(page), 0); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("installed", region[0])

	// From now on it would be again.
	if _, err := uffd.Zap([]uffd.Range{{Addr: dst, Len: uintptr(page)}}); err != nil {
		fmt.Println(err)
	}
	// Output: installed 7
}

// What doctor prints.
func ExampleProbe() {
	for _, r := range uffd.Probe() {
		switch {
		case r.Supported:
			fmt.Printf("%-16v yes\n", r.Feature)
		default:
			fmt.Printf("%-16v no: %v (for %s)\n", r.Feature, r.Err, r.Feature.Use())
		}
	}
}
