//go:build linux

package pager_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/uffdpager/uffdpager/pager"
	"github.com/uffdpager/uffdpager/pager/store"
)

// Accounts in an Atomic region, each on a page of its own. A transfer does first what
// can fail: it pins both pages, which are there from then on and have room to be
// written to. Then it stores. Until the pins are released no commit takes its cut, so
// a commit, and what a crash leaves, has both sides of the transfer or none. (A lock
// that keeps transfers of the same account apart is the program's, and not shown.)
func ExampleRegion_Commit() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	p, err := pager.New(pager.Options{Budget: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer p.Close()
	open := func() (*pager.Region, error) {
		s, err := store.OpenFile(filepath.Join(dir, "accounts"), store.FileOptions{Create: true, Size: 1 << 20})
		if err != nil {
			return nil, err
		}
		return p.Map(s, pager.RegionOptions{Durability: pager.Atomic}) // the journal is accounts.journal
	}
	const account = 4096
	transfer := func(r *pager.Region, from, to int64, amount int64) error {
		a, err := r.AcquireWrite(ctx, from*account, 8)
		if err != nil {
			return err
		}
		defer a.Release()
		b, err := r.AcquireWrite(ctx, to*account, 8)
		if err != nil {
			return err // nothing has been stored yet
		}
		defer b.Release()
		add := func(m []byte, n int64) {
			binary.LittleEndian.PutUint64(m, uint64(int64(binary.LittleEndian.Uint64(m))+n))
		}
		add(a.Bytes(), -amount)
		add(b.Bytes(), amount)
		return nil
	}
	balance := func(r *pager.Region, n int64) int64 {
		var b [8]byte
		if _, err := r.ReadAt(b[:], n*account); err != nil {
			fmt.Println(err)
		}
		return int64(binary.LittleEndian.Uint64(b[:]))
	}

	r, err := open()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(transfer(r, 1, 2, 100), r.Commit(ctx)) // durable: one flush, shared by all who commit now
	fmt.Println(transfer(r, 1, 2, 11))                 // not committed
	fmt.Println(balance(r, 1), balance(r, 2))
	fmt.Println(r.Close()) // or a crash

	if r, err = open(); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(balance(r, 1), balance(r, 2))

	// It prints:
	// <nil> <nil>
	// <nil>
	// -111 111
	// <nil>
	// -100 100
}

// An example that is run by itself cannot skip where there are no Atomic regions.
func TestExampleRegion_Commit(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout := os.Stdout
	os.Stdout = w
	ExampleRegion_Commit()
	os.Stdout = stdout
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got), "atomic regions need") {
		t.Skip(string(got))
	}
	if want := "<nil> <nil>\n<nil>\n-111 111\n<nil>\n-100 100\n"; string(got) != want {
		t.Errorf("it prints\n%s, want\n%s", got, want)
	}
}
