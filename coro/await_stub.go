//go:build !linux

package coro

// Without eventfds nothing gets as far as waiting: both ways in fail in
// checkEventfd or openEfdPoller.

type efdPoller struct{}

const efdBatch = 1

func openEfdPoller() (*efdPoller, error) { return nil, ErrNotSupported }

func (*efdPoller) close() error              { return ErrNotSupported }
func (*efdPoller) arm(int32, bool) error     { return ErrNotSupported }
func (*efdPoller) disarm(int32) error        { return ErrNotSupported }
func (*efdPoller) poll([]int32) (int, error) { return 0, ErrNotSupported }
func (*efdPoller) wait([]int32) (int, error) { return 0, ErrNotSupported }
func (*efdPoller) wake()                     {}

func readEventfd(int32) (uint64, bool, error) { return 0, false, ErrNotSupported }
func checkEventfd(int32) error                { return ErrNotSupported }
