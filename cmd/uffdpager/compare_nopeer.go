//go:build linux && !cgo

package main

import (
	"errors"
	"os"
)

// havePeer says whether userfaultfd-go is built in: it needs cgo.
const havePeer = false

func openHandler(rowSpec, *os.File) (*way, error) {
	return nil, errors.New("userfaultfd-go needs cgo, without which this program was built")
}
