module github.com/uffdpager/uffdpager

go 1.25.0

require (
	github.com/HdrHistogram/hdrhistogram-go v1.3.0
	github.com/loopholelabs/userfaultfd-go v0.1.2
	github.com/spf13/cobra v1.10.2
	go.uber.org/zap v1.28.0
	golang.org/x/sys v0.47.0
	golang.org/x/term v0.45.0
	pgregory.net/rapid v1.3.0
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	go.uber.org/multierr v1.10.0 // indirect
)
