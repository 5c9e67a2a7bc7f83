package main

import (
	"github.com/spf13/cobra"
	"io"
)

func doctorCommand(stdout io.Writer) *cobra.Command { return &cobra.Command{Use: "doctor"} }
