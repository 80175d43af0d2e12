package nbd

// Numbers of the NBD protocol, in the order of its document (doc/proto.md of NetworkBlockDevice/nbd); all are sent in
// network byte order.

// "Protocol phases", "Fixed newstyle negotiation".
const (
	magicServer      = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption      = 0x49484156454F5054 // "IHAVEOPT"
	magicOptionReply = 0x0003e889045565a9
)

// "Transmission phase": request, simple reply and structured reply chunk messages.
const (
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	requestSize = 28 // magic 4, flags 2, type 2, cookie 8, offset 8, length 4
	simpleSize  = 16 // magic 4, error 4, cookie 8
	chunkSize   = 20 // magic 4, flags 2, type 2, cookie 8, length 4
	dataSize    = chunkSize + 8
)

// "Handshake flags" and "Client flags".
const (
	handshakeFixed    = 1 << 0
	handshakeNoZeroes = 1 << 1
)

// "Transmission flags".
const (
	flagHasFlags    = 1 << 0
	flagReadOnly    = 1 << 1
	flagFlush       = 1 << 2
	flagFUA         = 1 << 3
	flagTrim        = 1 << 5
	flagWriteZeroes = 1 << 6
	flagDF          = 1 << 7
	flagMultiConn   = 1 << 8
	flagCache       = 1 << 10
	flagFastZero    = 1 << 11
)

// "Option types".
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// "Option reply types".
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMeta        = 4
	repError       = 1 << 31
	repUnsupported = repError + 1
	repPolicy      = repError + 2
	repInvalid     = repError + 3
	repUnknown     = repError + 6
	repShutdown    = repError + 7
	repTooBig      = repError + 9
)

// NBD_INFO types of the replies to NBD_OPT_INFO and NBD_OPT_GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// "Request types".
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// "Command flags".
const (
	cmdFUA      = 1 << 0
	cmdNoHole   = 1 << 1
	cmdDF       = 1 << 2
	cmdReqOne   = 1 << 3
	cmdFastZero = 1 << 4
)

// "Structured reply flags" and "Structured reply types".
const (
	replyDone = 1 << 0

	replyNone        = 0
	replyData        = 1
	replyHole        = 2
	replyStatus      = 5
	replyErrorBit    = 1 << 15
	replyError       = replyErrorBit + 1
	replyErrorOffset = replyErrorBit + 2
)

// "base:allocation metadata context".
const (
	contextAllocation = "base:allocation"
	contextDepth      = "qemu:allocation-depth" // of QEMU's docs/interop/nbd.txt
	stateHole         = 1 << 0
	stateZero         = 1 << 1
)

// errno is one of "Error values".
type errno uint32

const (
	errPermission errno = 1
	errIO         errno = 5
	errMemory     errno = 12
	errInvalid    errno = 22
	errNoSpace    errno = 28
	errOverflow   errno = 75
	errNotSup     errno = 95
	errShutdown   errno = 108
)

// Limits, see "Terminology" (strings) and "Block size constraints".
const (
	maxString      = 4096
	maxPayload     = 32 << 20
	maxOption      = 64 << 10 // of an option's data
	maxOptions     = 1024     // of one negotiation
	minimumBlock   = 1
	preferredBlock = 4096
)
