//go:build cgo

package uffd

import (
	"reflect"
	"testing"

	"github.com/loopholelabs/userfaultfd-go/pkg/constants"
	"golang.org/x/sys/unix"
)

// userfaultfd-go sees the kernel's own header through cgo: what both define
// must agree.
func TestOurNumbersAreTheHeaders(t *testing.T) {
	for _, c := range []struct {
		name         string
		ours, header uint64
	}{
		{"__NR_userfaultfd", unix.SYS_USERFAULTFD, constants.NR_userfaultfd},
		{"UFFD_API", apiVersion, constants.UFFD_API},
		{"UFFDIO_API", ioctlAPI, constants.UFFDIO_API},
		{"UFFDIO_REGISTER", ioctlRegister, constants.UFFDIO_REGISTER},
		{"UFFDIO_COPY", ioctlCopy, constants.UFFDIO_COPY},
		{"UFFDIO_REGISTER_MODE_MISSING", RegisterMissing, constants.UFFDIO_REGISTER_MODE_MISSING},
	} {
		if c.ours != c.header {
			t.Errorf("%s: %#x, the header says %#x", c.name, c.ours, c.header)
		}
	}
}

func TestOurLayoutsAreTheHeaders(t *testing.T) {
	for _, c := range []struct {
		ours, header any
	}{
		{kernelRange{}, constants.UffdioRange{}},
		{argAPI{}, constants.UffdioAPI{}},
		{argRegister{}, constants.UffdioRegister{}},
		{argCopy{}, constants.UffdioCopy{}},
	} {
		sameShape(t, reflect.TypeOf(c.ours), reflect.TypeOf(c.header))
	}

	// The values, through the header's constructors: a field that changed its
	// place would show here.
	copied := constants.NewUffdioCopy(make([]byte, 1), 0x5678, 0x1000, 3, 4)
	v := reflect.ValueOf(copied)
	if v.Field(0).Uint() != 0x5000 || v.Field(2).Uint() != 0x1000 || v.Field(3).Uint() != 3 || v.Field(4).Int() != 4 {
		t.Errorf("uffdio_copy is not dst, src, len, mode, copy: %+v", copied)
	}
	registered := constants.NewUffdioRegister(1, 2, 3)
	v = reflect.ValueOf(registered)
	if v.Field(0).Field(0).Uint() != 1 || v.Field(0).Field(1).Uint() != 2 || v.Field(1).Uint() != 3 {
		t.Errorf("uffdio_register is not start, len, mode, ioctls: %+v", registered)
	}
}

func sameShape(t *testing.T, ours, header reflect.Type) {
	t.Helper()
	if ours.Size() != header.Size() || flat(ours) != flat(header) {
		t.Errorf("%v is %d bytes in %d fields, the header's %v %d in %d", ours, ours.Size(), flat(ours), header, header.Size(), flat(header))
		return
	}
	if ours.NumField() != header.NumField() {
		t.Errorf("%v has %d members, the header's %d", ours, ours.NumField(), header.NumField())
		return
	}
	for i := range ours.NumField() {
		o, h := ours.Field(i), header.Field(i)
		if o.Offset != h.Offset || o.Type.Size() != h.Type.Size() || o.Type.Kind() != h.Type.Kind() {
			t.Errorf("%v.%s: %v at %d; the header's %s: %v at %d", ours, o.Name, o.Type, o.Offset, h.Name, h.Type, h.Offset)
		}
	}
}

// flat counts the scalar members.
func flat(t reflect.Type) (n int) {
	if t.Kind() != reflect.Struct {
		return 1
	}
	for i := range t.NumField() {
		n += flat(t.Field(i).Type)
	}
	return n
}
