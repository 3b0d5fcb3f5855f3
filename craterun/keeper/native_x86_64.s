# What `craterun.keeper.native` has as bytes: the clone of a container's first process, and all
# that this process does until execve(2). A test assembles this file and compares.
#
#     long start(struct clone_args *args, size_t size, struct slot *slot)
#
# returns what clone3(2) returns to the parent, with an error as a negative number. The child does
# not return. It has neither a stack nor any memory but this code and the arena, so there is no call,
# no push and no red zone here, and registers are all that there is:
#
#     rbx  the call that is being made        r12  the slot
#     rbp  how many calls were made           r13  the next entry of its table of parts
#     r14d flags of the call
#
# The layout of slots and calls is that of `craterun.core.native`.

        .intel_syntax noprefix
        .set    CALL_SIZE, 72           # struct call: number, flags, six arguments, wanted,
        .set    FLAGS, 4                # two errnos, how many calls to skip
        .set    ARGUMENTS, 8
        .set    WANTED, 56
        .set    ERRNO_1, 64
        .set    ERRNO_2, 66
        .set    SKIP, 68

        .set    FAILED, 16              # struct slot: 16 bytes for the time of execve, then these
        .set    RESULT, 24
        .set    PARTS, 32

        .set    WANTED_IS_VALUE, 0x40   # flags; the lowest six are those of the arguments
        .set    ANY_RESULT, 0x80
        .set    LENIENT, 0x100
        .set    ANY_ERRNO, 0x200

        .set    SYS_exit_group, 231
        .set    SYS_clone3, 435
        .set    END_OF_PART, -1         # in place of a system call's number
        .set    COMPARE, -2

start:
        mov     eax, SYS_clone3
        syscall
        test    rax, rax
        jz      child
        ret

child:
        mov     r12, rdx
        lea     r13, [rdx + PARTS]
        xor     ebp, ebp

next_part:
        mov     rbx, [r13]
        add     r13, 8
        xor     eax, eax
        test    rbx, rbx
        jz      failed                  # the plan ends without executing anything

next_call:
        mov     eax, [rbx]
        cmp     eax, END_OF_PART
        je      next_part
        mov     r14d, [rbx + FLAGS]
        mov     rdi, [rbx + ARGUMENTS]
        mov     rsi, [rbx + ARGUMENTS + 8]
        mov     rdx, [rbx + ARGUMENTS + 16]
        mov     r10, [rbx + ARGUMENTS + 24]
        mov     r8, [rbx + ARGUMENTS + 32]
        mov     r9, [rbx + ARGUMENTS + 40]

        # An argument that is particular to this container is a place in the slot.
        test    r14b, 0x3f
        jz      all_known
        test    r14b, 1
        jz      1f
        mov     rdi, [r12 + rdi]
1:      test    r14b, 2
        jz      1f
        mov     rsi, [r12 + rsi]
1:      test    r14b, 4
        jz      1f
        mov     rdx, [r12 + rdx]
1:      test    r14b, 8
        jz      1f
        mov     r10, [r12 + r10]
1:      test    r14b, 16
        jz      1f
        mov     r8, [r12 + r8]
1:      test    r14b, 32
        jz      all_known
        mov     r9, [r12 + r9]

all_known:
        cmp     eax, COMPARE
        je      compare
        syscall

judge:
        inc     rbp
        test    r14d, ANY_RESULT
        jnz     any_result
        mov     rdx, [rbx + WANTED]
        test    r14d, WANTED_IS_VALUE
        jz      1f
        mov     rdx, [r12 + rdx]
1:      cmp     rax, rdx
        jne     refused
worked:
        add     rbx, CALL_SIZE
        jmp     next_call
any_result:
        test    rax, rax
        jns     worked

refused:
        test    r14d, LENIENT
        jz      failed
        test    r14d, ANY_ERRNO
        jnz     skip
        mov     rcx, rax
        neg     rcx
        movzx   edx, word ptr [rbx + ERRNO_1]
        cmp     rcx, rdx
        je      skip
        movzx   edx, word ptr [rbx + ERRNO_2]
        cmp     rcx, rdx
        jne     failed
skip:
        movzx   ecx, word ptr [rbx + SKIP]
        add     rbp, rcx
        imul    rcx, rcx, CALL_SIZE
        add     rbx, rcx
        jmp     worked

        # Whether the bits rsi of the slot's eight bytes at rdi are rdx; if not, it is errno r10.
compare:
        mov     rax, [r12 + rdi]
        and     rax, rsi
        xor     rax, rdx
        jz      judge
        mov     rax, r10
        neg     rax
        jmp     judge

failed:
        mov     [r12 + RESULT], rax
        mov     [r12 + FAILED], rbp
        mov     edi, 125
        mov     eax, SYS_exit_group
        syscall
        hlt
