package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/uffdpager/uffdpager/prefetch"
)

// open makes the policy of a job. finish must be called when the region is closed: it
// completes the file of a recording, or leaves it as it was if nothing was done.
func (p prefetchChoice) open(j *job) (policy prefetch.Policy, finish func(done bool) error, err error) {
	finish = func(bool) error { return nil }
	switch p.name {
	case "none":
		return prefetch.None(), finish, nil
	case "stride":
		return prefetch.Stride(prefetch.StrideOptions{}), finish, nil
	case "record":
		f, err := openOutput("--prefetch "+p.String(), p.file)
		if err != nil {
			return nil, nil, err
		}
		r := prefetch.RecordOf(f, fullName(j.o.file))
		return r, func(done bool) error {
			if !done {
				f.abandon()
			}
			err := errors.Join(r.Close(), f.Close())
			j.r.Prefetch.Recorded = r.Pages()
			if err == nil && r.Lost() > 0 {
				err = fmt.Errorf("the disk was too slow for %s", plural(r.Lost(), "page"))
			}
			if err != nil {
				return fmt.Errorf("--prefetch %s: %w", p, err)
			}
			return nil
		}, nil
	case "replay":
		f, err := os.Open(p.file)
		if err != nil {
			return nil, nil, fmt.Errorf("--prefetch %s: %w", p, err)
		}
		defer f.Close()
		policy, err := prefetch.Replay(f, prefetch.ReplayOptions{
			PageSize: int64(j.o.pageSize), Name: fullName(j.o.file), Region: j.o.regionSize(),
		})
		switch {
		case policy != nil && err != nil: // it is replayed as far as it goes
			j.note("--prefetch %s: %v", p, err)
		case err != nil:
			return nil, nil, fmt.Errorf("--prefetch %s: %w", p, err)
		}
		return policy, finish, nil
	}
	return prefetch.Readahead(prefetch.ReadaheadOptions{}), finish, nil
}

// fullName is what a trace of the file is called: the same for each way to name it. A
// data file that is made for a run has none.
func fullName(file string) string {
	if file == "" {
		return ""
	}
	if name, err := filepath.EvalSymlinks(file); err == nil {
		file = name
	}
	if name, err := filepath.Abs(file); err == nil {
		file = name
	}
	return file
}

// regionSize is how large the region will be, in bytes; 0: that is not known yet.
func (o *runOptions) regionSize() int64 {
	if o.file == "" {
		return int64(o.size)
	}
	if st, err := os.Stat(o.file); err == nil && st.Mode().IsRegular() {
		return st.Size()
	}
	return 0
}
