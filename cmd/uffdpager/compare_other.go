//go:build !linux

package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/uffdpager/uffdpager/pager"
)

const havePeer = false

func compareSupported() error { return pager.ErrNotSupported }
func haveFio() bool           { return false }
func whyNotCounted() error    { return pager.ErrNotSupported }

type memoryGroups struct{ why string }

func findMemoryGroups(int64) memoryGroups       { return memoryGroups{why: "not Linux"} }
func warmCache(*os.File, int64) (cached int64)  { return 0 }
func dropAllCache(*os.File, int64) (left int64) { return 0 }
func runFio(context.Context, rowSpec, *os.File) rowResult {
	return rowResult{Error: pager.ErrNotSupported.Error()}
}
func runRow(context.Context, rowSpec, *os.File, memoryGroups, bool) rowResult {
	return rowResult{Error: pager.ErrNotSupported.Error()}
}
func compareRowCommand(io.Reader, io.Writer) *cobra.Command {
	return &cobra.Command{Use: "compare-row", Hidden: true, RunE: func(*cobra.Command, []string) error { return pager.ErrNotSupported }}
}
