// qp_state.cpp — the table of RC transitions.
#include "qp_state.hpp"

#include <cstdio>

namespace rdmakit::emu {

namespace {
constexpr u32 kInitAttrs = kQpAttrPkeyIndex | kQpAttrPort | kQpAttrAccessFlags;
constexpr u32 kRunningAttrs = kQpAttrCurState | kQpAttrAccessFlags | kQpAttrAltPath | kQpAttrMinRnrTimer |
                              kQpAttrPathMigState;
constexpr u32 kDrainedAttrs = kQpAttrPort | kQpAttrAv | kQpAttrTimeout | kQpAttrRetryCnt | kQpAttrRnrRetry |
                              kQpAttrMaxQpRdAtomic | kQpAttrMaxDestRdAtomic | kQpAttrAltPath | kQpAttrPkeyIndex |
                              kQpAttrAccessFlags | kQpAttrMinRnrTimer | kQpAttrPathMigState;
constexpr const char* kStateNames[kQpStates] = {"RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR"};
constexpr const char* kAttrNames[kQpAttrs] = {
    "STATE", "CUR_STATE", "EN_SQD_ASYNC_NOTIFY", "ACCESS_FLAGS", "PKEY_INDEX", "PORT", "QKEY", "AV", "PATH_MTU",
    "TIMEOUT", "RETRY_CNT", "RNR_RETRY", "RQ_PSN", "MAX_QP_RD_ATOMIC", "ALT_PATH", "MIN_RNR_TIMER", "SQ_PSN",
    "MAX_DEST_RD_ATOMIC", "PATH_MIG_STATE", "CAP", "DEST_QPN"};
}  // namespace

QpTransition qp_transition(QpState from, QpState to) {
    // Every state can be reset, and every one but RESET can be sent to ERR.
    if (to == QpState::reset) return {true, 0, 0};
    if (to == QpState::err) return {from != QpState::reset, 0, 0};
    switch (from) {
        case QpState::reset:
            if (to == QpState::init) return {true, kInitAttrs, 0};
            break;
        case QpState::init:
            if (to == QpState::init) return {true, 0, kInitAttrs};
            if (to == QpState::rtr)
                return {true,
                        kQpAttrAv | kQpAttrPathMtu | kQpAttrDestQpn | kQpAttrRqPsn | kQpAttrMaxDestRdAtomic |
                            kQpAttrMinRnrTimer,
                        kQpAttrAltPath | kQpAttrAccessFlags | kQpAttrPkeyIndex};
            break;
        case QpState::rtr:
            if (to == QpState::rts)
                return {true,
                        kQpAttrTimeout | kQpAttrRetryCnt | kQpAttrRnrRetry | kQpAttrSqPsn | kQpAttrMaxQpRdAtomic,
                        kRunningAttrs};
            break;
        case QpState::rts:
            if (to == QpState::rts) return {true, 0, kRunningAttrs};
            if (to == QpState::sqd) return {true, 0, kQpAttrEnSqdAsyncNotify};
            break;
        case QpState::sqd:
            if (to == QpState::rts) return {true, 0, kRunningAttrs};
            if (to == QpState::sqd) return {true, 0, kDrainedAttrs};
            break;
        case QpState::sqe:  // no RC queue pair gets here; the table has the row all the same
            if (to == QpState::rts) return {true, 0, 0};
            break;
        case QpState::err: break;
    }
    return {false, 0, 0};
}

const char* qp_state_name(QpState state) {
    const u32 index = static_cast<u32>(state);
    return index < kQpStates ? kStateNames[index] : "an unknown state";
}

const char* qp_attr_names(u32 mask, char* text, u32 size) {
    u32 at = 0;
    text[0] = 0;
    for (u32 bit = 0; bit < kQpAttrs && at + 1 < size; ++bit) {
        if (!(mask & (1u << bit))) continue;
        const int written = std::snprintf(text + at, size - at, "%s%s", at ? "|" : "", kAttrNames[bit]);
        at += static_cast<u32>(written);
    }
    const u32 unknown = mask & ~((1u << kQpAttrs) - 1);
    if (unknown && at + 1 < size) std::snprintf(text + at, size - at, "%s0x%x", at ? "|" : "", unknown);
    return text;
}

}  // namespace rdmakit::emu
