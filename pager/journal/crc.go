package journal

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC32C is the checksum of records, headers and images: CRC-32C, reflected,
// with the customary inversion before and after (RFC 3720).
func CRC32C(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }
