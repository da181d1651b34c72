package shard

import (
	"bytes"

	"github.com/twmb/franz-go/pkg/kgo"
)

// This file owns the compression of large batches.

// compressAbove is the size in bytes from which a batch is compressed: some thirty
// events. Measured with bench commands on Apache Kafka, compressing every batch cost a
// quarter of the commands per second at 256 callers, because the brokers and all
// consumers decompress each batch. With this size nothing was lost.
const compressAbove = 16 << 10

// batchCompressor compresses large batches with zstd. Records of a batch have the same
// headers, and events of the same types, so they shrink to less than a fifth.
type batchCompressor struct{ zstd kgo.Compressor }

func newBatchCompressor() (batchCompressor, error) {
	zstd, err := kgo.DefaultCompressor(kgo.ZstdCompression().WithLevel(1)) // 1: the fastest
	return batchCompressor{zstd}, err
}

// Compress implements kgo.Compressor.
func (c batchCompressor) Compress(dst *bytes.Buffer, src []byte, flags ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	if len(src) < compressAbove {
		return src, kgo.CodecNone
	}
	return c.zstd.Compress(dst, src, flags...)
}
