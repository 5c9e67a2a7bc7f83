//go:build !uffdpager_nointernals

package coro

// knownCode has the fingerprints of the functions relied on, as they were found
// in the releases listed in release.seen and in what their functions compile to
// with GOAMD64 from v1 to v4, -race and -buildmode=pie. A new one is printed by
// TestAuditOfThisRelease, run with the flags in question; it is added when the
// function was read and the torture has run.
var knownCode = map[string]map[string][]uint64{
	"go1.25": {
		"runtime.asyncPreempt":     {0xe9906b6604c4567e},
		"runtime.asyncPreempt2":    {0xf6cecc1fba0e9a48, 0xfd44fc9de07e876e},
		"runtime.doSigPreempt":     {0xb20848a80563e4e2},
		"runtime.gopark":           {0xe2c4204f5634eb18},
		"runtime.goready":          {0x6dd59180cecc764d, 0x86b3f72a40289c37},
		"runtime.isAsyncSafePoint": {0xf2dfb0c925c37411},
		"runtime.park_m":           {0x20612a5a73897ab5},
		"runtime.ready":            {0xbcb2cd53dadd1d2d},
		"runtime.scanConservative": {0x3e7e38af731875f0, 0xb7d964e4f6c6ce64},
		"runtime.scanframeworker":  {0x5b635b664c10d5c3},
		"runtime.scanstack":        {0x9f4d21c243584305, 0xa33bbfc935c5724f},
		"runtime.shrinkstack":      {0x87bc830e5cb7a6e7, 0xb87e28264d84f79e},
		"runtime.sighandler":       {0x1164f927b1af6b6a, 0x26b3e30db7a54fb5, 0x81693bbd366d809f, 0xc9210e14a68161e3},
		"runtime.sigtramp":         {0x308ffd3c4315a02a, 0xa975129fa696646c},
		"runtime.sigtrampgo":       {0x5276520e8d5e695b, 0x6ce1d48d40bc6aa4},
		"runtime.suspendG":         {0x852bdcbfa0615e76, 0xec8d14fad9c3b5eb, 0xfa0351177c6d1731},
	},
	"go1.26": {
		"runtime.asyncPreempt":        {0x0044500d303166d0, 0xe6687d0f64fcee5e},
		"runtime.asyncPreempt2":       {0x84b1f7d64bd62395, 0x8b282854724610bb},
		"runtime.asyncPreempt2.func1": {0xe2571a0e43d9873b},
		"runtime.doSigPreempt":        {0xa739c3d04ec4ab92},
		"runtime.gopark":              {0xe5e5325ca8803dd4},
		"runtime.goready":             {0x6dd59180cecc764d, 0x86b3f72a40289c37},
		"runtime.isAsyncSafePoint":    {0xc4229fd1d92cb74e},
		"runtime.park_m":              {0x1699e4fa17a7ec05},
		"runtime.ready":               {0x974a6add24bbb36a},
		"runtime.scanConservative":    {0x23b3d199d05ccbcd, 0x55b05e7e77872ac7},
		"runtime.scanframeworker":     {0x5b635b664c10d5c3},
		"runtime.scanstack":           {0x15a9c34c68ce5668},
		"runtime.shrinkstack":         {0xa28700920f0d4eb2, 0xd510733a90fdd30d},
		"runtime.sighandler":          {0x08f2398fe5df95ab, 0x5e8d7df6052ba7dc},
		"runtime.sigtramp":            {0x308ffd3c4315a02a, 0xa975129fa696646c},
		"runtime.sigtrampgo":          {0x64b16c88e0f1ea7f, 0xd81eecafee42e09d},
		"runtime.suspendG":            {0x1409deccd0a28bf5, 0x617789b057158115, 0x9b08ebcb7aa8012a},
		"runtime.xRegRestore":         {0x3f17548357b06801, 0x5911f539e6b4a617},
		"runtime.xRegSave":            {0xdd240de4931bc6b3},
	},
	"go1.27": {
		"runtime.asyncPreempt":        {0x0044500d303166d0, 0xe6687d0f64fcee5e},
		"runtime.asyncPreempt2":       {0x84b1f7d64bd62395, 0x8b282854724610bb},
		"runtime.asyncPreempt2.func1": {0xe2571a0e43d9873b},
		"runtime.doSigPreempt":        {0x96e97a422ecaa7cb},
		"runtime.gopark":              {0x911913be2292eeb6},
		"runtime.goready":             {0x6dd59180cecc764d, 0x86b3f72a40289c37},
		"runtime.isAsyncSafePoint":    {0xb512332c80e28651},
		"runtime.park_m":              {0xf0a34fcb10038203},
		"runtime.ready":               {0x6f278c98e9d8290b},
		"runtime.scanConservative":    {0x23b3d199d05ccbcd, 0x55b05e7e77872ac7},
		"runtime.scanframeworker":     {0xc79e01d92a5cec95},
		"runtime.scanstack":           {0xc447a90f077de3bb},
		"runtime.shrinkstack":         {0x0b66ec529c37256e, 0x661d56c63009aa11},
		"runtime.sighandler":          {0x9273f7607e0427ff, 0xe35bd0ec47ade72a},
		"runtime.sigtramp":            {0x308ffd3c4315a02a, 0xa975129fa696646c},
		"runtime.sigtrampgo":          {0x64b16c88e0f1ea7f, 0xd81eecafee42e09d},
		"runtime.suspendG":            {0x83832fff88926ac3, 0x85e372db1cda6c30, 0x9b9b98dc0ac34b47},
		"runtime.xRegRestore":         {0x3f17548357b06801, 0x5911f539e6b4a617},
		"runtime.xRegSave":            {0x1f582da1db04dde2},
		"runtime.xRegScan":            {0xcf56afac5b343761},
	},
}
