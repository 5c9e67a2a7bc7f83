package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// output is a file that a result goes to. It is opened before the work, so that a
// name that cannot be written to is refused at once; but what was in it is lost only
// when there is something to put in its place.
type output struct {
	f     *os.File
	made  bool // there was no such file
	begun bool
	gone  bool // nothing is to be written any more
}

// sameFile: two names are one file's, which is there.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, errY := os.Stat(b)
	return err == nil && errY == nil && os.SameFile(x, y)
}

// openOutput opens the file that a flag names.
func openOutput(flag, name string) (*output, error) {
	_, err := os.Lstat(name)
	o := &output{made: errors.Is(err, fs.ErrNotExist)}
	if o.f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666); err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return o, nil
}

// Write replaces what was there.
func (o *output) Write(p []byte) (int, error) {
	if o.gone {
		return len(p), nil
	}
	if !o.begun {
		o.begun = true
		if st, err := o.f.Stat(); err == nil && st.Mode().IsRegular() {
			if err := o.f.Truncate(0); err != nil {
				return 0, err
			}
		}
	}
	return o.f.Write(p)
}

// abandon leaves the file as it was found.
func (o *output) abandon() { o.gone = true }

// Close removes a file that nothing was written to, unless it was there before. A
// second Close is harmless.
func (o *output) Close() error {
	err := o.f.Close()
	if o.made && !o.begun {
		o.made = false
		err = errors.Join(err, os.Remove(o.f.Name()))
	}
	return err
}
