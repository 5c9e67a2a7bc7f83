package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/uffdpager/uffdpager/prefetch"
)

// open makes the policy. finish must be called when the region is closed: it
// completes the file of a recording, or leaves it as it was if nothing was done.
func (p prefetchChoice) open(pageSize int64) (policy prefetch.Policy, finish func(done bool) error, err error) {
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
		r := prefetch.Record(f)
		return r, func(done bool) error {
			if !done {
				f.abandon()
			}
			err := errors.Join(r.Close(), f.Close())
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
		policy, err := prefetch.Replay(f, prefetch.ReplayOptions{PageSize: pageSize})
		if err != nil {
			return nil, nil, fmt.Errorf("--prefetch %s: %w", p, err)
		}
		return policy, finish, nil
	}
	return prefetch.Readahead(prefetch.ReadaheadOptions{}), finish, nil
}
