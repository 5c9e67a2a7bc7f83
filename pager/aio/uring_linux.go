package aio

import "fmt"

func (e *engine) openIOURing(eventfd int) error {
	return fmt.Errorf("aio: io_uring is %w", ErrNotSupported)
}
